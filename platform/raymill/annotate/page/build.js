// Functions that build elements. Text is inserted as text nodes, so an answer is never parsed as HTML.

export function make(tag, settings = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "text") element.textContent = value;
    else if (name === "class") element.className = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export function key(...names) {
  return names.map((name) => make("kbd", { text: name }));
}

export function button(label, keyName, action, settings = {}) {
  const { class: kind = "", ...others } = settings;
  return make(
    "button",
    { type: "button", class: kind, on: { click: action }, ...others },
    make("span", { text: label }),
    ...(keyName ? key(keyName) : []),
  );
}

const SPEAKERS = { system: "System", user: "User", assistant: "Assistant", tool: "Tool" };

export function conversation(messages) {
  const section = make("section", { class: "prompt", "aria-label": "Question" });
  for (const { role, content } of messages) {
    section.append(
      make(
        "div",
        { class: `message ${role in SPEAKERS ? role : ""}` },
        make("h2", { class: "speaker", text: SPEAKERS[role] ?? role }),
        make("div", { class: "text", text: content, dir: "auto" }),
      ),
    );
  }
  return section;
}

// Render the guide's subset of Markdown: headings, lists, **bold**, `code`.
export function renderGuide(text) {
  const parts = [];
  let list = null;
  for (const block of text.split(/\n(?=#|[-*] |\d+\. )|\n\s*\n/)) {
    const trimmed = block.trim();
    const [, marks, title] = trimmed.match(/^(#{1,4}) +([\s\S]*)$/) ?? [];
    const [, sign, entry] = trimmed.match(/^([-*]|\d+\.) +([\s\S]*)$/) ?? [];
    if (!trimmed) continue;
    if (entry !== undefined) {
      const kind = /\d/.test(sign) ? "ol" : "ul";
      if (list?.localName !== kind) parts.push((list = make(kind)));
      list.append(make("li", {}, ...spans(entry)));
      continue;
    }
    list = null;
    parts.push(title === undefined ? make("p", {}, ...spans(trimmed)) : make(marks.length === 1 ? "h2" : "h3", {}, ...spans(title)));
  }
  return parts;
}

function spans(text) {
  return text.split(/(\*\*[^*]+\*\*|`[^`]+`)/).map((part) => {
    if (/^\*\*.+\*\*$/s.test(part)) return make("strong", { text: part.slice(2, -2) });
    if (/^`.+`$/s.test(part)) return make("code", { text: part.slice(1, -1) });
    return part;
  });
}
