// Two answers side by side, and the vote between them. Until the vote nobody sees which model is which, and chance
// decides who stands left.

import { button, make } from "./build.js";
import { AnswerView, shortName } from "./message_view.js";

const CHOICES = [
  { vote: "a", label: "A is better", key: "A", ranks: [1, 2] },
  { vote: "tie", label: "Tie", key: "T", ranks: [1, 1] },
  { vote: "b", label: "B is better", key: "B", ranks: [2, 1] },
  { vote: "bad", label: "Both bad", key: "X", ranks: null },
];

export class PairView {
  // `question.pair`: the ids of both answers in the order of the page; `question.vote`: the vote, once given.
  constructor(question, ui) {
    Object.assign(this, { question, ui });
    this.sides = question.pair.map((id, side) => new AnswerView(ui.tree.get(id), ui, { name: "AB"[side], inPair: true }));
    this.bar = make("div", { class: "vote", role: "group", "aria-label": "Which answer is better?" });
    this.element = make("section", { class: "pair-view", "aria-label": "Two answers" }, make("div", { class: "pair" }, ...this.sides.map((side) => side.element)), this.bar);
    this.known = null;
  }

  get answers() {
    return this.sides.map((side) => side.message);
  }

  update() {
    const { vote } = this.question;
    const models = this.answers.map(({ version, model }) => shortName(version ?? model));
    const chosen = this.ui.tree.choices[this.question.id];
    this.sides.forEach((side, at) => {
      const tags = vote ? [models[at], ...(vote === "ab"[at] ? ["preferred"] : [])] : [];
      side.update({ tags });
      side.element.classList.toggle("chosen", Boolean(vote) && side.message.id === chosen);
    });
    const state = this.state(vote);
    if (state === this.known) return;
    this.known = state;
    this.bar.replaceChildren(...this.barParts(state, vote, chosen));
  }

  state(vote) {
    if (this.answers.some((answer) => this.ui.isRunning(answer))) return "running";
    if (vote) return `voted ${vote} ${this.ui.tree.choices[this.question.id]}`;
    const [a, b] = this.answers;
    if (!this.ui.votes || !isWhole(a) || !isWhole(b) || a.dropped !== b.dropped) return "unusable";
    return a.content.trim() === b.content.trim() ? "equal" : "open";
  }

  barParts(state, vote, chosen) {
    const goOn = this.sides.map((side, at) => button(`Continue with ${"AB"[at]}`, null, () => this.ui.continueWith(this.question.id, side.message.id), { "aria-pressed": String(side.message.id === chosen) }));
    if (state === "running") return [make("p", { class: "hint", text: "You can vote once both answers are complete." })];
    if (state === "unusable") return goOn;
    if (state === "equal") return [make("p", { class: "hint", text: "Both answers are equal, so there is nothing to vote on." }), ...goOn];
    if (state === "open") {
      return CHOICES.map((choice) => button(choice.label, choice.key, () => this.ui.vote(this.question.id, choice), { class: choice.vote.length === 1 ? "strong" : "", "aria-keyshortcuts": choice.key.toLowerCase() }));
    }
    const label = CHOICES.find((choice) => choice.vote === vote)?.label;
    return [make("p", { class: "hint", text: `Your vote: ${label}.` }), button("Take it back", null, () => this.ui.takeBack(this.question.id), { class: "quiet" }), ...goOn];
  }

  // Keys that vote while no text is being typed.
  choose(key) {
    if (this.known !== "open") return false;
    const choice = CHOICES.find((one) => one.key.toLowerCase() === key.toLowerCase());
    if (choice) this.ui.vote(this.question.id, choice);
    return Boolean(choice);
  }
}

const isWhole = ({ finish, content }) => ["stop", "length"].includes(finish) && Boolean(content.trim());
