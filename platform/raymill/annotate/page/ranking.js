// More than two answers: a list sorted by dragging or by keys. Tied answers share a rank.

import { Better, card, letter } from "/answers.js";
import { button, conversation, make } from "/build.js";

// A taller answer is folded, so that the whole list stays easy to sort.
const LONG_PX = 320;

export function rankingView(task, ui) {
  const count = task.answers.length;
  let order = startingOrder(task);
  const tied = new Set(tiedWithAbove(order, task.before?.ranks)); // answers tied with the one above them
  const list = make("ol", { class: "ranking", "aria-label": "Answers, the best first" });
  const better = new Better(task, ui, () => render());

  const cards = task.answers.map((answer, index) => {
    const handle = make("button", { type: "button", class: "handle", "aria-label": `Drag answer ${letter(index)}`, text: "⠿", tabindex: "-1", on: { pointerdown: (event) => drag(event, index) } });
    const tie = button("tied with the one above", "=", () => toggleTie(index), { class: "tie" });
    const unfold = () => element.querySelector(".unfold span").replaceChildren(element.classList.toggle("open") ? "Show less" : "Show all");
    const tools = [button("Show all", null, unfold, { class: "quiet unfold" }), button("Edit", null, () => better.edit(index), { class: "quiet", title: "Write a better answer, from this" })];
    const element = card(index, answer, tools);
    const number = make("span", { class: "rank-number" });
    element.querySelector("header").prepend(handle, number);
    const item = make("li", { tabindex: "0", "data-index": index }, tie, element);
    return { item, number, tie };
  });

  function render(anchor = order[0]) {
    const ranks = ranksOf();
    order.forEach((index, position) => {
      const { item, number, tie } = cards[index];
      number.textContent = ranks[index] + (better.text === null ? 0 : 1);
      tie.hidden = position === 0;
      tie.setAttribute("aria-pressed", String(tied.has(index)));
      item.classList.toggle("tied", tied.has(index));
      item.setAttribute("aria-label", `Answer ${letter(index)}, rank ${ranks[index]}`);
    });
    // The moving card stays in the page and the others move around it: removed from the page, it would lose the
    // focus and the pointer.
    const { item: still } = cards[anchor];
    const at = order.indexOf(anchor);
    if (still.parentNode !== list) list.append(still);
    for (const index of order.slice(0, at)) list.insertBefore(cards[index].item, still);
    for (const index of order.slice(at + 1)) list.append(cards[index].item);
  }

  function ranksOf() {
    const ranks = [];
    let rank = 0;
    for (const index of order) ranks[index] = tied.has(index) ? rank : ++rank;
    return ranks;
  }

  function move(index, to, quietly = false) {
    const from = order.indexOf(index);
    to = Math.max(0, Math.min(count - 1, to));
    if (to === from) return;
    const next = order[from + 1];
    if (!tied.has(index) && next !== undefined) tied.delete(next); // the next card now leads its group of ties
    order = order.filter((other) => other !== index);
    const follower = order[to];
    // A card dropped into a group of ties joins it.
    if (to > 0 && follower !== undefined && tied.has(follower)) tied.add(index);
    else tied.delete(index);
    order.splice(to, 0, index);
    tied.delete(order[0]);
    render(index);
    if (!quietly) ui.say(`Answer ${letter(index)} is number ${to + 1} of ${count}`);
  }

  function toggleTie(index) {
    if (order[0] === index) return;
    if (!tied.delete(index)) tied.add(index);
    render(index);
    ui.say(tied.has(index) ? `Answer ${letter(index)} is tied with the one above` : `Answer ${letter(index)} is worse than the one above`);
  }

  function drag(event, index) {
    const { item } = cards[index];
    const handle = event.currentTarget;
    event.preventDefault();
    handle.setPointerCapture(event.pointerId);
    item.classList.add("dragged");
    item.focus({ preventScroll: true });
    const onMove = ({ clientY }) => {
      if (clientY < 90) scrollBy(0, -14);
      if (clientY > innerHeight - 130) scrollBy(0, 14);
      const others = order.filter((other) => other !== index);
      const above = others.filter((other) => middle(cards[other].item) < clientY).length;
      if (above !== order.indexOf(index)) move(index, above, true);
    };
    const onEnd = () => {
      item.classList.remove("dragged");
      handle.removeEventListener("pointermove", onMove);
      ui.say(`Answer ${letter(index)} is number ${order.indexOf(index) + 1} of ${count}`);
    };
    handle.addEventListener("pointermove", onMove);
    handle.addEventListener("lostpointercapture", onEnd, { once: true });
  }

  const focused = () => Number(document.activeElement?.closest?.("li[data-index]")?.dataset.index ?? NaN);
  function step(by, moving) {
    const index = focused();
    const at = Number.isNaN(index) ? (by > 0 ? -1 : count) : order.indexOf(index);
    if (moving && !Number.isNaN(index)) move(index, at + by);
    const goal = moving && !Number.isNaN(index) ? index : order[Math.max(0, Math.min(count - 1, at + by))];
    cards[goal].item.focus();
    cards[goal].item.scrollIntoView({ block: "nearest" });
  }
  const withFocused = (action) => () => Number.isNaN(focused()) || action(focused());

  function decide(decision, ranks, message) {
    ui.decide("/api/rank", { decision, ranks, text: decision === "skip" ? null : better.text }, message);
  }
  const submit = () => decide("ranked", ranksOf(), "Ranked");
  const tie = () => decide("ranked", order.map(() => 1), "All tied");
  const bad = () => decide("bad", null, "All bad");
  const skip = () => decide("skip", null, "Skipped");
  const moveKeys = Object.fromEntries(task.answers.slice(0, 9).map((_, at) => [at + 1, withFocused((index) => (move(index, at), cards[index].item.focus()))]));

  render();
  requestAnimationFrame(() => cards.forEach(({ item }) => item.querySelector(".card").classList.toggle("long", item.querySelector(".text").offsetHeight > LONG_PX)));
  return {
    element: make("div", { class: "rank" }, conversation(task.messages), make("p", { class: "hint" }, "Put the best on top: drag it by ⠿", make("span", { class: "by-keys", text: ", or select with ↑ ↓ and move with Shift ↑ ↓" }), "."), better.element, list),
    actions: [
      button("Submit this order", "Enter", submit, { class: "strong", "aria-keyshortcuts": "Enter" }),
      button("All tied", "T", tie, { "aria-keyshortcuts": "t" }),
      button("All bad", "X", bad, { class: "second", "aria-keyshortcuts": "x" }),
      button("Skip", "S", skip, { class: "second", "aria-keyshortcuts": "s" }),
    ],
    keys: {
      ArrowUp: () => step(-1, false), ArrowDown: () => step(1, false), "Shift+ArrowUp": () => step(-1, true), "Shift+ArrowDown": () => step(1, true),
      "=": withFocused(toggleTie), ...moveKeys, Enter: submit, t: tie, x: bad, s: skip,
      e: () => better.edit(Number.isNaN(focused()) ? order[0] : focused()),
    },
    help: [
      [["↑", "↓"], "select an answer"],
      [["Shift ↑", "Shift ↓"], "move it"],
      [[`1 … ${Math.min(9, count)}`], "move it to that rank"],
      [["="], "tie it with the one above"],
      [["Enter"], "submit this order"],
      [["T"], "all tied"],
      [["X"], "all bad"],
      [["S"], "skip"],
      [["E"], "write a better answer"],
    ],
  };
}

function middle(element) {
  const { top, height } = element.getBoundingClientRect();
  return top + height / 2;
}

function startingOrder(task) {
  const indexes = task.answers.map((_, index) => index);
  const ranks = task.before?.ranks;
  return ranks ? indexes.sort((left, right) => ranks[left] - ranks[right] || left - right) : indexes;
}

function tiedWithAbove(order, ranks) {
  return ranks ? order.filter((index, at) => at > 0 && ranks[index] === ranks[order[at - 1]]) : [];
}
