// Parts shared by both ways of ranking: the cards of the answers, and the annotator's own better answer.

import { button, make } from "/build.js";

export const letter = (index) => String.fromCharCode(65 + index);

export function card(index, answer, tools = []) {
  const name = `Answer ${letter(index)}`;
  return make(
    "article",
    { class: "card", "aria-label": name },
    make("header", {}, make("h2", { class: "badge", text: letter(index), "aria-label": name }), cutTag(answer), make("div", { class: "tools" }, ...tools)),
    make("div", { class: "text", text: answer.text, dir: "auto" }),
  );
}

export function cutTag(answer) {
  return answer.cut ? make("span", { class: "tag", text: "cut off", title: "It reached the maximum length of an answer" }) : null;
}

// The annotator's own version, ranked above all shown answers; `changed` is called after every change.
export class Better {
  constructor(task, ui, changed) {
    this.text = task.before?.text ?? null;
    this.element = make("div", { class: "yours-slot" });
    this.task = task;
    this.ui = ui;
    this.changed = changed;
    this.render();
  }

  async edit(base) {
    const bases = this.task.answers.map((answer, index) => ({ label: letter(index), text: answer.text }));
    const written = await this.ui.write({
      title: "Write a better answer",
      hint: "It is ranked above all answers shown. You still rank those.",
      save: "Use it",
      bases: [...bases, { label: "Empty", text: "" }],
      text: this.text ?? this.task.answers[base].text,
      chosen: this.text === null ? base : null,
      draft: this.task.item,
      check: (text) =>
        this.task.answers.some((answer) => answer.text.trim() === text.trim()) ? "This equals one of the answers shown: change something." : null,
    });
    if (written !== null) this.set(written);
  }

  set(text) {
    this.text = text;
    this.render();
    this.changed();
    this.ui.say(text === null ? "Your version was removed." : "Your version is ranked first. Now rank the others.");
  }

  render() {
    if (this.text === null) return this.element.replaceChildren();
    return this.element.replaceChildren(
      make(
        "article",
        { class: "card yours", "aria-label": "Your version" },
        make(
          "header",
          {},
          make("h2", { class: "badge", text: "Yours" }),
          make("span", { class: "tag", text: "ranked first" }),
          make("div", { class: "tools" }, button("Edit", "E", () => this.edit(0), { class: "quiet" }), button("Remove", null, () => this.set(null), { class: "quiet" })),
        ),
        make("div", { class: "text", text: this.text, dir: "auto" }),
      ),
    );
  }
}
