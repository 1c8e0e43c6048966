// Blocks of code with a button that copies them.

import { button, make } from "./build.js";

export function codeBlock({ language, text }) {
  const node = document.createTextNode(text);
  const figure = make(
    "figure",
    { class: "code" },
    make("figcaption", {}, make("span", { text: language || "code" }), copyButton(() => node.data)),
    make("pre", { tabindex: "0", "aria-label": language ? `Code, ${language}` : "Code" }, make("code", { translate: "no" }, node)),
  );
  // Append what a block has grown by; return false if it is another block.
  figure.extend = (block) => {
    if (block.language !== language || !block.text.startsWith(node.data)) return false;
    node.appendData(block.text.slice(node.length));
    return true;
  };
  return figure;
}

export function copyButton(read, label = "Copy") {
  const made = button(label, null, async () => {
    const copied = await copy(read());
    made.firstChild.textContent = copied ? "Copied" : "Can't copy";
    setTimeout(() => (made.firstChild.textContent = label), 1500);
  }, { class: "quiet copy" });
  return made;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // The clipboard needs a secure context, and plain http from another machine is none.
    const field = make("textarea", { class: "unseen" });
    field.value = text;
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}
