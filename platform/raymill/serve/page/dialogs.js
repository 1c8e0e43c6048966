// Dialogs: a single field to fill in, and contents with a button that closes.

import { button, key, make } from "./build.js";

const NAME = /^[\p{L}\p{M}\p{N}._\- ]{1,64}$/u;

// Show a dialog until it closes; resolve to its return value.
function opened(title, parts, { wide = false, actions = null, onSubmit = () => {} } = {}) {
  const heading = make("h2", { id: "dialog-title", text: title });
  const form = make("form", { method: "dialog" }, heading, ...parts, make("div", { class: "row end" }, ...(actions ?? [make("button", { class: "primary", value: "done", autofocus: true }, "Close ", ...key("Esc"))])));
  const dialog = make("dialog", { class: wide ? "wide" : "", "aria-labelledby": "dialog-title" }, form);
  form.addEventListener("submit", onSubmit);
  // A click beside the dialog closes it.
  dialog.addEventListener("pointerdown", ({ target, clientX: x, clientY: y }) => {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    if (target === dialog && (x < left || x > right || y < top || y > bottom)) dialog.close("");
  });
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
  });
}

export const showDialog = (title, parts, settings = {}) => opened(title, parts, settings);

// Ask for a line of text; resolve to null if canceled. `check` returns a problem or "".
export async function askText({ title, why, label, value = "", save = "Save", check = () => "", extra = null, ...field }) {
  const input = make("input", { id: "asked", required: true, ...field });
  input.value = value;
  const validate = () => input.setCustomValidity(check(input.value.trim()));
  input.addEventListener("input", validate);
  validate();
  const actions = [button("Cancel", "Esc", () => input.closest("dialog").close("")), make("button", { class: "primary", value: "save", text: save })];
  const parts = [why ? make("p", { text: why }) : null, make("label", { for: "asked", text: label }), input, extra].filter(Boolean);
  const shown = opened(title, parts, { actions });
  input.select();
  return (await shown) === "save" ? input.value.trim() : null;
}

export function askName(value) {
  const check = (name) => (NAME.test(name) ? "" : "Letters, digits, spaces and . _ - only");
  return askText({ title: "Your name", why: "Your name is stored with your votes, so use the same one every time.", label: "Name", value, save: "Vote", check, maxlength: 64, autocomplete: "nickname" });
}

export function askKey(problem) {
  const why = problem || "This server wants an API key. It stays in this window and is forgotten when the window closes.";
  return askText({ title: "API key", why, label: "Key", save: "Use it", type: "password", autocomplete: "off" });
}

export function showKeys(groups) {
  const rows = groups.flatMap(([names, meaning]) => [make("dt", {}, ...names.flatMap((name) => key(name))), make("dd", { text: meaning })]);
  return opened("Keyboard shortcuts", [make("dl", { id: "keys" }, ...rows)]);
}
