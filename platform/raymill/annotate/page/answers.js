// What the ways of comparing have in common: cards of answers, and the better one that a person writes.

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
  return answer.cut ? make("span", { class: "tag", text: "breaks off", title: "It reached the longest that an answer may be" }) : null;
}

// The annotator's own version, ranked above all that were shown; `changed` is called when there is one.
export class Better {
  constructor(task, desk, changed) {
    this.text = task.before?.text ?? null;
    this.place = make("div", { class: "yours-place" });
    this.task = task;
    this.desk = desk;
    this.changed = changed;
    this.render();
  }

  async edit(base) {
    const bases = this.task.answers.map((answer, index) => ({ label: letter(index), text: answer.text }));
    const written = await this.desk.write({
      title: "Write a better one",
      hint: "It is ranked above all that were shown. You still compare those.",
      save: "Use it",
      bases: [...bases, { label: "Empty", text: "" }],
      text: this.text ?? this.task.answers[base].text,
      chosen: this.text === null ? base : null,
      draft: this.task.item,
      check: (text) =>
        this.task.answers.some((answer) => answer.text.trim() === text.trim()) ? "This is one of the answers shown: change something." : null,
    });
    if (written !== null) this.set(written);
  }

  set(text) {
    this.text = text;
    this.render();
    this.changed();
    this.desk.say(text === null ? "Your version is removed." : "Your version is ranked first. Now compare the others.");
  }

  render() {
    if (this.text === null) return this.place.replaceChildren();
    return this.place.replaceChildren(
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
