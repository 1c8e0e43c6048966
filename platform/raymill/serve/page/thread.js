// The messages of the branch that is shown. Views are kept by message, so that an update touches what changed alone.

import { make } from "./build.js";
import { PairView } from "./compare.js";
import { forgotten } from "./fit.js";
import { AnswerView, QuestionView } from "./message_view.js";
import { turnsOf } from "./tree.js";

const NEAR_END = 120; // pixels from the end within which the page follows a growing answer

export class Thread {
  constructor(element, ui) {
    Object.assign(this, { element, ui });
    this.views = new Map();
    this.waiting = new Set();
    this.forgotten = 0;
    this.divider = make("p", { class: "divider", role: "note" });
  }

  clear() {
    this.views.clear();
    this.element.replaceChildren();
  }

  // Show the branch: a question whose two answers are compared at its end, or all messages one after the other.
  show() {
    const path = this.ui.tree.path();
    const parts = [];
    const { dropped, positions, count } = this.lost(path);
    const pair = this.openPair(path);
    this.forgotten = count;
    path.forEach((message, at) => {
      const paired = pair && at === path.length - 1 && message.role === "assistant";
      const view = paired ? this.view(`pair ${pair.id}`, () => new PairView(pair, this.ui)) : this.view(message.id, () => new (message.role === "user" ? QuestionView : AnswerView)(message, this.ui));
      view.update({ forgotten: at < count });
      parts.push(view.element);
      if (at === count - 1) parts.push(this.divider);
    });
    this.divider.textContent = count ? forgotten(dropped, positions) : "";
    this.place(parts);
    const live = new Set(parts);
    for (const [key, view] of this.views) if (!live.has(view.element)) this.views.delete(key);
  }

  // What the last answer's prompt left out: turns, and the first messages of the branch.
  lost(path) {
    const last = path.findLast((message) => message.role === "assistant" && message.dropped != null);
    if (!last?.dropped) return { dropped: 0, positions: null, count: 0 };
    const turn = turnsOf(path)[2 * last.dropped - 1];
    return { dropped: last.dropped, positions: last.positions, count: path.findIndex(({ id }) => id === turn.ids.at(-1)) + 1 };
  }

  openPair(path) {
    const last = path.at(-1);
    const question = last?.role === "assistant" ? this.ui.tree.get(last.parent) : null;
    return question?.pair?.includes(last.id) && !question.settled ? question : null;
  }

  get pair() {
    const question = this.openPair(this.ui.tree.path());
    return question ? this.views.get(`pair ${question.id}`) : null;
  }

  view(key, create) {
    if (!this.views.has(key)) this.views.set(key, create());
    return this.views.get(key);
  }

  // Bring the elements into this order with as few moves as possible: a moved element loses its focus.
  place(parts) {
    const wanted = new Set(parts);
    for (const child of [...this.element.children]) if (!wanted.has(child)) child.remove();
    parts.forEach((part, at) => {
      const there = this.element.children[at];
      if (there !== part) this.element.insertBefore(part, there ?? null);
    });
  }

  // Show what arrived for a message, at most once a frame.
  changed(message) {
    if (!this.waiting.size) requestAnimationFrame(() => this.flush());
    this.waiting.add(message.id);
  }

  flush() {
    const follow = this.atEnd();
    const path = this.ui.tree.path();
    const pair = this.pair;
    // Once a prompt is fitted, it is known what was left out.
    if (this.lost(path).count !== this.forgotten) this.show();
    for (const id of this.waiting) {
      const inPair = pair?.answers.some((answer) => answer.id === id);
      (inPair ? pair : this.views.get(id))?.update();
    }
    this.waiting.clear();
    if (follow) this.toEnd();
  }

  atEnd() {
    return document.documentElement.scrollHeight - innerHeight - scrollY < NEAR_END;
  }

  // Messages out of sight have an estimated height until they are drawn, so the end is looked for several times.
  toEnd(times = 4) {
    scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
    if (times > 1) requestAnimationFrame(() => this.toEnd(times - 1));
  }
}
