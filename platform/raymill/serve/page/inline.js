// Markdown within a line: code, bold, italics, struck text and links. Every scan is linear, also of hostile text.

import { make } from "./build.js";

const SPECIAL = /[\\`*_~[!]|https?:\/\//g;
const NESTING = 6;
const ADDRESS_CHARACTERS = 600;

// Return elements and strings.
export function spans(text, depth = 0) {
  const found = [];
  // Delimiters that don't close in the rest of the text, so that nobody looks for them again.
  const missing = new Set();
  const scan = new RegExp(SPECIAL);
  let plain = "";
  let at = 0;
  for (let hit; ((scan.lastIndex = at), (hit = scan.exec(text))); ) {
    plain += text.slice(at, hit.index);
    const [part, end] = (depth < NESTING && span(text, hit.index, depth, missing)) || [hit[0], hit.index + hit[0].length];
    at = end;
    if (typeof part === "string") {
      plain += part;
      continue;
    }
    if (plain) found.push(plain);
    plain = "";
    found.push(part);
  }
  plain += text.slice(at);
  if (plain) found.push(plain);
  return found;
}

function span(text, at, depth, missing) {
  switch (text[at]) {
    case "\\":
      return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? [text[at + 1], at + 2] : null;
    case "`":
      return code(text, at, missing);
    case "[":
      return link(text, at, at, depth);
    case "!":
      return text[at + 1] === "[" ? link(text, at + 1, at, depth) : null;
    case "h":
      return address(text, at);
    default:
      return emphasis(text, at, depth, missing);
  }
}

function run(text, at) {
  let end = at;
  while (text[end] === text[at]) end++;
  return end - at;
}

function code(text, at, missing) {
  const length = run(text, at);
  const marks = "`".repeat(length);
  const unmatched = [marks, at + length];
  if (missing.has(marks)) return unmatched;
  for (let end = text.indexOf(marks, at + length); end >= 0; end = text.indexOf(marks, end)) {
    const other = run(text, end);
    if (other === length) {
      const inner = text.slice(at + length, end).replaceAll("\n", " ");
      const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
      return [make("code", { text: padded ? inner.slice(1, -1) : inner }), end + length];
    }
    end += other;
  }
  missing.add(marks);
  return unmatched;
}

const TAGS = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "del" };
const isSpace = (character) => !character || /\s/.test(character);
const isWord = (character) => Boolean(character) && /[\p{L}\p{N}_]/u.test(character);

function emphasis(text, at, depth, missing) {
  const length = run(text, at);
  const whole = [text.slice(at, at + length), at + length];
  // The outer marks of three are bold, and the inner one is in italics.
  const marks = text[at].repeat(length === 1 ? 1 : 2);
  const tag = TAGS[marks];
  if (!tag || length > 3 || isSpace(text[at + length])) return whole;
  if (text[at] === "_" && isWord(text[at - 1])) return whole;
  if (missing.has(marks)) return whole;
  for (let end = text.indexOf(marks, at + length); end >= 0; ) {
    const other = run(text, end);
    // Two marks don't end what one began; the last of three belong to the outer.
    const fits = marks.length === 1 ? other === 1 || other === 3 : other >= 2;
    const close = marks.length === 2 ? end + other - 2 : end + other - 1;
    if (fits && !isSpace(text[end - 1]) && !(text[at] === "_" && isWord(text[end + other]))) {
      return [make(tag, {}, ...spans(text.slice(at + marks.length, close), depth + 1)), close + marks.length];
    }
    end = text.indexOf(marks, end + other);
  }
  missing.add(marks);
  return whole;
}

// `[label](https://…)`; `from` is where its text begins, before the sign of a picture.
function link(text, at, from, depth) {
  const ahead = text.slice(at + 1, at + 1 + ADDRESS_CHARACTERS);
  const length = ahead.indexOf("](");
  const label = ahead.slice(0, length);
  if (length < 0 || label.includes("[") || label.includes("\n\n")) return null;
  const start = at + length + 3;
  let end = start;
  // An address may contain parentheses, as Wikipedia's do.
  for (let open = 1; end < start + ADDRESS_CHARACTERS; end++) {
    if (text[end] === "(") open++;
    if (text[end] === ")" && !--open) break;
  }
  if (text[end] !== ")") return null;
  // A title may follow the address; it isn't shown.
  const [url] = text.slice(start, end).trim().split(/\s/);
  const element = anchor(url.replace(/^<(.*)>$/, "$1"), from < at ? [label || "picture"] : spans(label, depth + 1));
  return element ? [element, end + 1] : null;
}

const ADDRESS = new RegExp(`[^\\s<>"\`]{1,${ADDRESS_CHARACTERS}}`, "y");

function address(text, at) {
  ADDRESS.lastIndex = at;
  let [url] = ADDRESS.exec(text);
  // A sentence's last sign isn't part of the address; nor is a parenthesis that opened before it.
  for (;;) {
    const last = url.at(-1);
    if (/[.,;:!?'*_~\]]/.test(last) || (last === ")" && url.split(")").length > url.split("(").length)) url = url.slice(0, -1);
    else break;
  }
  return [anchor(url, [url]) ?? url, at + url.length];
}

function anchor(url, children) {
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    return null;
  }
  if (parsed.protocol !== "https:" && parsed.protocol !== "http:") return null;
  return make("a", { href: parsed.href, target: "_blank", rel: "noopener noreferrer nofollow", title: parsed.href }, ...children);
}
