// Views in which one person writes an answer and another one reviews it.

import { button, conversation, make } from "/build.js";

export function writingView(task, ui) {
  const draft = ui.draft(task.item);
  const text = make("textarea", { id: "writing", rows: 12, dir: "auto", "aria-describedby": "length", spellcheck: "true" });
  const length = make("p", { class: "hint", id: "length" });
  text.value = draft.read() ?? task.before?.text ?? "";
  const count = () => {
    const words = text.value.trim().split(/\s+/).filter(Boolean).length;
    length.textContent = `${words} ${words === 1 ? "word" : "words"}; saved as a draft on this device until you submit it`;
  };
  text.addEventListener("input", () => (draft.write(text.value), count()));
  count();

  function submit() {
    if (!text.value.trim()) {
      ui.say("The answer is empty: write one, or skip the question.", true);
      text.focus();
      return;
    }
    ui.decide("/api/write", { decision: "write", text: text.value }, "Written").then((sent) => sent && draft.clear());
  }
  const skip = () => ui.decide("/api/write", { decision: "skip" }, "Skipped");

  const returned = task.returned && make(
    "section",
    { class: "card returned", "aria-label": "Rejected answer" },
    make("header", {}, make("h2", { class: "badge", text: "Rejected answer" })),
    make("div", { class: "text", text: task.returned.text, dir: "auto" }),
    make("p", { class: "reason" }, make("strong", { text: "Why: " }), task.returned.reason),
  );
  return {
    element: make("div", { class: "write" }, conversation(task.messages), returned, make("label", { for: "writing", class: "field", text: "Your answer" }), text, length),
    actions: [button("Submit", "Ctrl Enter", submit, { class: "strong", "aria-keyshortcuts": "Control+Enter" }), button("Skip", "S", skip, { class: "second", "aria-keyshortcuts": "s" })],
    keys: { "Ctrl+Enter": submit, s: skip },
    help: [
      [["Ctrl Enter"], "submit"],
      [["Esc"], "leave the text field, so that the keys below work"],
      [["S"], "skip"],
    ],
    focus: text,
  };
}

export function reviewView(task, ui) {
  const send = (body, message) => ui.decide("/api/review", { about: task.about, ...body }, message);
  const accept = () => send({ decision: "accept" }, "Accepted");
  const skip = () => send({ decision: "skip" }, "Skipped");

  async function edit() {
    const text = await ui.write({
      title: "Edit and accept",
      hint: "The dataset will contain the text that you save here.",
      save: "Accept this",
      text: task.before?.decision === "edit" ? task.before.text : task.text,
      draft: `${task.item}/${task.about}`,
      check: (written) => (written.trim() === task.text.trim() ? "The text is unchanged: change something, or accept it as it is." : null),
    });
    if (text !== null) send({ decision: "edit", text }, "Edited and accepted");
  }

  async function reject() {
    const reason = await ui.write({ title: "Reason for the rejection", hint: "The author reads this and may write another answer.", save: "Reject", text: task.before?.reason ?? "", short: true });
    if (reason !== null) send({ decision: "reject", reason }, "Rejected");
  }

  return {
    element: make(
      "div",
      { class: "review" },
      conversation(task.messages),
      make("article", { class: "card", "aria-label": "Answer to review" }, make("header", {}, make("h2", { class: "badge", text: "Written by another annotator" })), make("div", { class: "text", text: task.text, dir: "auto" })),
    ),
    actions: [
      button("Accept", "A", accept, { class: "strong", "aria-keyshortcuts": "a" }),
      button("Edit", "E", edit, { "aria-keyshortcuts": "e" }),
      button("Reject", "R", reject, { "aria-keyshortcuts": "r" }),
      button("Skip", "S", skip, { class: "second", "aria-keyshortcuts": "s" }),
    ],
    keys: { a: accept, e: edit, r: reject, s: skip },
    help: [
      [["A"], "accept"],
      [["E"], "edit and accept"],
      [["R"], "reject, with a reason"],
      [["S"], "skip"],
    ],
  };
}
