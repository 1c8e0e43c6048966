"""Markdown, and the elements that it becomes."""

MARKDOWN = {
    "# One #\n\n**b** *i* `c<d` ***bi*** snake_case __s__ ~~d~~ 2 * 3 * 4": (
        '<h3 class="level-1">One</h3><p><strong>b</strong> <em>i</em> <code>c&lt;d</code> '
        "<strong><em>bi</em></strong> snake_case <strong>s</strong> <del>d</del> 2 * 3 * 4</p>"
    ),
    "- a\n- b\n  - c\n\ntext\n\n3. x\n4. y": (
        "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul></li></ul><p>text</p>"
        '<ol start="3"><li><p>x</p></li><li><p>y</p></li></ol>'
    ),
    "> said\n> - so\n\n---": (
        "<blockquote><p>said</p><ul><li><p>so</p></li></ul></blockquote><hr>"
    ),
    "| a | b |\n|---|--:|\n| 1 | **2** |": (
        "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td>1</td><td><strong>2</strong></td></tr></tbody></table></div>"
    ),
    "[ok](https://a.b/c_(d)) see https://e.org/x_y, end": (
        '<p><a href="https://a.b/c_(d)">ok</a> see <a href="https://e.org/x_y">https://e.org/x_y</a>, end</p>'
    ),
    "[x](javascript:alert(1)) [y](data:text/html,1) <b>t</b> ![p](http://u.v/w.png)": (
        "<p>[x](javascript:alert(1)) [y](data:text/html,1) &lt;b&gt;t&lt;/b&gt; "
        '<a href="http://u.v/w.png">p</a></p>'
    ),
    "```py\nx = '<i>'\n```\nafter\n~~~\nstill open": (
        "<figure><pre><code>x = '&lt;i&gt;'</code></pre></figure><p>after</p>"
        "<figure><pre><code>still open</code></pre></figure>"
    ),
    "**open and `open and \\*kept\\* [open](": "<p>**open and `open and *kept* [open](</p>",
}
RENDER = """(async () => {
  const { markdown, MarkdownView } = await import('/page/markdown.js');
  const html = (element) => {
    const copy = element.cloneNode(true);
    copy.querySelectorAll('figcaption').forEach((one) => one.remove());
    for (const one of copy.querySelectorAll('*')) for (const { name } of [...one.attributes])
      if (!['href', 'start'].includes(name) && !one.className.startsWith('level')) one.removeAttribute(name);
    return copy.innerHTML;
  };
  const grown = (text, step) => {
    const view = new MarkdownView(document.createElement('div'));
    for (let at = 0; at < text.length; at += step) view.update(text.slice(0, at));
    view.update(text);
    return html(view.element);
  };
  const texts = %s;
  const all = texts.slice(0, -2).join('\\n\\n');
  const hostile = ['*', '[', '`', '*a ', '_a_', '> ', '- ', '[a](', 'https://[', '\\\\', 'a\\n', '|-'];
  const slow = hostile.map((one) => {
    const started = performance.now();
    markdown(one.repeat(20000) + '](x)**');
    return performance.now() - started;
  });
  const grows = (text) => [1, 3, 8].every((step) => grown(text, step) === html(markdown(text)));
  return { whole: texts.map((text) => html(markdown(text))), same: texts.concat(all).every(grows), slow };
})()"""
