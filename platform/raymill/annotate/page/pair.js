// Two answers side by side: one key decides.

import { Better, card } from "/answers.js";
import { button, conversation, make } from "/build.js";

export function pairView(task, ui) {
  const better = new Better(task, ui, () => {});
  const cards = task.answers.map((answer, index) =>
    card(index, answer, [button("Edit", index ? null : "E", () => better.edit(index), { class: "quiet", title: "Write a better answer, from this" })]),
  );
  const before = task.before?.ranks;
  if (before) cards.forEach((element, index) => element.classList.toggle("chosen", before[0] !== before[1] && before[index] === 1));

  function decide(decision, ranks, message, chosen) {
    if (chosen !== undefined) cards[chosen].classList.add("chosen");
    ui.decide("/api/rank", { decision, ranks, text: decision === "skip" ? null : better.text }, message);
  }
  const left = () => decide("ranked", [1, 2], "A is better", 0);
  const right = () => decide("ranked", [2, 1], "B is better", 1);
  const tie = () => decide("ranked", [1, 1], "Tie");
  const bad = () => decide("bad", null, "Both bad");
  const skip = () => decide("skip", null, "Skipped");

  return {
    element: make("div", { class: "rank" }, conversation(task.messages), better.element, make("div", { class: "pair" }, ...cards)),
    actions: [
      button("A is better", "←", left, { class: "strong", "aria-keyshortcuts": "ArrowLeft" }),
      button("Tie", "T", tie, { "aria-keyshortcuts": "t" }),
      button("B is better", "→", right, { class: "strong", "aria-keyshortcuts": "ArrowRight" }),
      button("Both bad", "X", bad, { class: "second", "aria-keyshortcuts": "x" }),
      button("Skip", "S", skip, { class: "second", "aria-keyshortcuts": "s" }),
    ],
    keys: { ArrowLeft: left, 1: left, a: left, ArrowRight: right, 2: right, b: right, t: tie, "=": tie, x: bad, s: skip, e: () => better.edit(0) },
    help: [
      [["←", "A", "1"], "A is better"],
      [["→", "B", "2"], "B is better"],
      [["T", "="], "tie"],
      [["X"], "both bad"],
      [["S"], "skip"],
      [["E"], "write a better answer"],
    ],
  };
}
