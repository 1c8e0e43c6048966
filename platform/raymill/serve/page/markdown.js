// Markdown as elements, for text that is still growing. Text becomes text nodes: nothing is parsed as HTML, links
// lead to http and https alone, and pictures are links. Finished blocks are never built again.

import { make } from "./build.js";
import { codeBlock } from "./code.js";
import { spans } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;
const QUOTE = /^ {0,3}> ?/;
const NESTING = 6; // lists and quotes within each other; what is nested deeper is shown as text

// Show a growing text in an element; `update` gets the whole text so far.
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.clear();
  }

  clear() {
    this.text = "";
    this.settled = 0; // characters whose blocks won't change any more
    this.open = []; // elements of the blocks that may
    this.element.replaceChildren();
  }

  update(text) {
    if (text === this.text) return;
    if (!text.startsWith(this.text)) this.clear();
    this.text = text;
    const rest = text.slice(this.settled);
    const blocks = parse(rest.split("\n"), 0);
    // A line that isn't complete yet may still turn out to continue the block before it.
    const last = blocks.at(-1);
    const keep = last && blocks.length > 1 && !rest.slice(last.from).includes("\n") ? 2 : 1;
    const settled = Math.max(0, blocks.length - keep);
    const reused = this.open.length && blocks.length === this.open.length ? this.open.at(-1) : null;
    // A long code block only gets its new characters.
    if (reused && last.kind === "code" && reused.extend?.(last)) return;
    for (const element of this.open) element.remove();
    const elements = blocks.map(build);
    this.element.append(...elements);
    this.open = elements.slice(settled);
    this.settled += settled ? blocks[settled].from : 0;
  }
}

export function markdown(text) {
  const view = new MarkdownView(make("div", { class: "markdown" }));
  view.update(text);
  return view.element;
}

// Blocks of some lines; `from` is the character at which a block begins.
function parse(lines, depth) {
  const blocks = [];
  let from = 0;
  for (let n = 0; n < lines.length; ) {
    if (!lines[n].trim()) {
      from += lines[n++].length + 1;
      continue;
    }
    const block = blockAt(lines, n, depth);
    blocks.push({ ...block, from });
    for (; n < block.end; n++) from += lines[n].length + 1;
  }
  return blocks;
}

function blockAt(lines, n, depth) {
  const line = lines[n];
  const fence = fenceOf(line);
  if (fence) return code(lines, n, fence);
  const heading = line.match(HEADING);
  if (heading) return { kind: "heading", level: heading[1].length, text: line.slice(heading[0].length).trim().replace(/#+$/, "").trim(), end: n + 1 };
  if (RULE.test(line)) return { kind: "rule", end: n + 1 };
  if (depth < NESTING) {
    if (QUOTE.test(line)) return quote(lines, n, depth);
    if (ITEM.test(line)) return list(lines, n, depth);
  }
  if (isTable(lines, n)) return table(lines, n);
  let end = n + 1;
  while (end < lines.length && lines[end].trim() && !(startsBlock(lines[end], depth) || isTable(lines, end))) end++;
  return { kind: "paragraph", text: lines.slice(n, end).map((one) => one.trimStart()).join("\n").trimEnd(), end };
}

function startsBlock(line, depth) {
  return fenceOf(line) || HEADING.test(line) || RULE.test(line) || (depth < NESTING && (QUOTE.test(line) || ITEM.test(line)));
}

function fenceOf(line) {
  const found = line.match(FENCE);
  // Backticks after backticks are code within a line.
  return found && !(found[1][0] === "`" && found[2].includes("`")) ? found : null;
}

function code(lines, n, [, marks, info]) {
  const indent = lines[n].length - lines[n].trimStart().length;
  const closes = (line) => {
    const text = line.trim();
    return text.length >= marks.length && text === marks[0].repeat(text.length);
  };
  let end = n + 1;
  while (end < lines.length && !closes(lines[end])) end++;
  const body = lines.slice(n + 1, end).map((line) => line.slice(Math.min(indent, line.length - line.trimStart().length)));
  return { kind: "code", language: info.trim().split(/\s/)[0], text: body.join("\n"), end: Math.min(lines.length, end + 1) };
}

function quote(lines, n, depth) {
  let end = n;
  const inside = [];
  while (end < lines.length && (QUOTE.test(lines[end]) || (end > n && lines[end].trim() && !startsBlock(lines[end], depth)))) inside.push(lines[end++].replace(QUOTE, ""));
  return { kind: "quote", blocks: parse(inside, depth + 1), end };
}

function list(lines, n, depth) {
  const [, indent, sign] = lines[n].match(ITEM);
  const ordered = /\d/.test(sign);
  const items = [];
  let end = n;
  for (let blank = false; end < lines.length; end++) {
    const line = lines[end];
    const space = line.length - line.trimStart().length;
    const item = line.match(ITEM);
    const sibling = item && space < indent.length + 2 && !RULE.test(line);
    if (!line.trim()) {
      blank = true;
      items.at(-1)?.push("");
      continue;
    }
    if (sibling) {
      // Another sign begins another list.
      if (/\d/.test(item[2]) !== ordered || (!ordered && item[2] !== sign)) break;
      items.push([line.slice(item[0].length)]);
    } else if (space >= indent.length + 2) items.at(-1).push(line.slice(Math.min(space, indent.length + (ordered ? 3 : 2))));
    else if (!blank && !startsBlock(line, depth)) items.at(-1).push(line.trimStart());
    else break;
    blank = false;
  }
  const start = ordered ? Number(sign.slice(0, -1)) : 1;
  // Blank lines at the end belong to what follows.
  while (end > n && !lines[end - 1].trim()) end--;
  return { kind: "list", ordered, start, items: items.map((item) => parse(item, depth + 1)), end };
}

const isDelimiter = (line) => line !== undefined && line.includes("-") && line.includes("|") && cells(line).every((cell) => /^:?-+:?$/.test(cell));

function isTable(lines, n) {
  return lines[n].includes("|") && isDelimiter(lines[n + 1]) && cells(lines[n]).length === cells(lines[n + 1]).length;
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inner.split("|").map((cell) => cell.trim());
}

function table(lines, n) {
  const sides = cells(lines[n + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left"));
  let end = n + 2;
  while (end < lines.length && lines[end].trim() && lines[end].includes("|")) end++;
  const rows = lines.slice(n + 2, end).map((line) => sides.map((_, at) => cells(line)[at] ?? ""));
  return { kind: "table", head: cells(lines[n]), sides, rows, end };
}

function build(block) {
  switch (block.kind) {
    case "code":
      return codeBlock(block);
    case "heading":
      // The page's own headings are h1 and h2.
      return make(`h${Math.min(6, block.level + 2)}`, { class: `level-${block.level}` }, ...spans(block.text));
    case "rule":
      return make("hr");
    case "quote":
      return make("blockquote", {}, ...block.blocks.map(build));
    case "list":
      return make(block.ordered ? "ol" : "ul", { start: block.ordered && block.start !== 1 ? block.start : null }, ...block.items.map((item) => make("li", {}, ...item.map(build))));
    case "table": {
      const row = (tag, texts) => make("tr", {}, ...texts.map((text, at) => make(tag, { class: block.sides[at] }, ...spans(text))));
      return make("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" }, make("table", {}, make("thead", {}, row("th", block.head)), make("tbody", {}, ...block.rows.map((texts) => row("td", texts)))));
    }
    default:
      return make("p", { dir: "auto" }, ...spans(block.text));
  }
}
