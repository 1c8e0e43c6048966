// Dialogs: the annotator's name, the keyboard shortcuts, and the text editor.

import { button, key, make } from "/build.js";

const find = (id) => document.getElementById(id);
const NAME = /^[\p{L}\p{M}\p{N}._\- ]{1,64}$/u;

// Ask for a name; resolve to null if the current name stays.
export function askName(current, problem = "") {
  const dialog = find("name-dialog");
  const field = find("name");
  field.value = current ?? "";
  const check = () => field.setCustomValidity(NAME.test(field.value.trim()) ? "" : "Letters, digits, spaces and . _ - only");
  field.oninput = check;
  check();
  dialog.querySelector("#name-rule").textContent = problem || "Letters, digits, spaces and . _ -, at most 64.";
  dialog.returnValue = "";
  return new Promise((resolve) => {
    // Esc closes the dialog only if there already is a name.
    dialog.oncancel = (event) => current || event.preventDefault();
    dialog.onclose = () => {
      const name = field.value.trim();
      const changed = dialog.dataset.sent === "yes" && name !== current;
      delete dialog.dataset.sent;
      if (!changed && !current) resolve(askName(current, problem));
      else resolve(changed ? name : null);
    };
    dialog.querySelector("form").onsubmit = () => (dialog.dataset.sent = "yes");
    dialog.showModal();
    field.select();
  });
}

export function showKeys(groups) {
  find("keys").replaceChildren(
    ...groups.flatMap(([names, meaning]) => [make("dt", {}, ...names.flatMap((name) => key(name))), make("dd", { text: meaning })]),
  );
  find("keys-dialog").showModal();
}

// Edit a text; resolve to null if canceled. `bases`: texts to start from; `check`: returns a problem or null.
export function write({ title, hint, save, text, bases = [], chosen = null, draft = null, check = () => null, short = false }) {
  const dialog = find("editor");
  const field = find("editor-text");
  find("editor-title").textContent = title;
  find("editor-hint").textContent = hint;
  find("editor-hint").classList.remove("wrong");
  find("editor-save").firstChild.textContent = `${save} `;
  field.rows = short ? 3 : 12;
  field.value = draft?.read() ?? text;
  const choices = bases.map(({ label, text: base }, index) =>
    button(label, null, () => {
      field.value = base;
      choices.forEach((choice, at) => choice.setAttribute("aria-pressed", String(at === index)));
      field.focus();
    }, { "aria-pressed": String(index === chosen && draft?.read() == null) }),
  );
  find("editor-bases").replaceChildren(...(choices.length ? [make("span", { class: "hint", text: "Start from" }), ...choices] : []));
  return new Promise((resolve) => {
    const finish = () => {
      const problem = field.value.trim() ? check(field.value) : "The text is empty.";
      find("editor-hint").textContent = problem ?? hint;
      find("editor-hint").classList.toggle("wrong", problem !== null);
      if (problem !== null) return field.focus();
      return close(field.value);
    };
    const close = (written) => {
      draft?.clear();
      resolve(written);
      dialog.close();
    };
    field.oninput = () => draft?.write(field.value);
    field.onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), finish());
    };
    find("editor-save").onclick = finish;
    find("editor-cancel").onclick = () => close(null);
    // This event arrives late, when the dialog may already be open for another text. After Esc the draft stays.
    dialog.onclose = () => dialog.open || resolve(null);
    dialog.showModal();
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  });
}
