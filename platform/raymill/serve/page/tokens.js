// An answer token by token, tinted by probability; a card shows a token's probability and the alternatives.

import { make } from "./build.js";

const TINTS = 6;

export const percent = (logProb) => {
  const value = 100 * Math.exp(logProb);
  return value >= 99.95 ? "100%" : value >= 10 ? `${value.toFixed(0)}%` : value >= 0.1 ? `${value.toFixed(1)}%` : "<0.1%";
};

// Halving a probability moves a token by one tint, so that the unlikely ones stand out.
const tint = (logProb) => Math.min(TINTS, Math.floor(-logProb / Math.LN2));

const visible = (text) => (text === "" ? "part of a character" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣"));

export class TokenView {
  constructor(element) {
    this.element = element;
    this.tokens = [];
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", "Tokens with their probabilities; the arrow keys move between them");
    this.element.addEventListener("pointerover", (event) => this.show(event.target));
    this.element.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hideCard());
    this.element.addEventListener("focusin", (event) => this.show(event.target));
    this.element.addEventListener("focusout", hideCard);
    this.element.addEventListener("keydown", (event) => this.move(event));
  }

  update(tokens) {
    if (tokens.length < this.tokens.length || tokens[0] !== this.tokens[0]) {
      this.element.replaceChildren();
      this.tokens = [];
    }
    const added = tokens.slice(this.tokens.length).map(([text, logProb], at) => {
      const first = this.tokens.length + at === 0;
      return make("span", { class: `token tint-${tint(logProb)}${text ? "" : " part"}`, tabindex: first ? "0" : "-1", text: text || "·" });
    });
    this.element.append(...added);
    this.tokens = tokens.slice();
  }

  show(span) {
    if (!span.classList.contains("token")) return;
    const at = [...this.element.children].indexOf(span);
    showCard(span, this.tokens[at]);
  }

  // One stop of the tab key for all tokens; the arrow keys go on from there.
  move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    const spans = [...this.element.children];
    const at = spans.indexOf(event.target);
    if (event.key === "Escape") hideCard();
    if (step === undefined || at < 0) return;
    event.preventDefault();
    const next = spans[Math.max(0, Math.min(spans.length - 1, at + step))];
    spans[at].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

const card = () => document.getElementById("token-card");

export function hideCard() {
  card().hidden = true;
}

function showCard(span, [text, logProb, likeliest]) {
  const same = ([other, value]) => value === logProb && (other === text || !text);
  const drawn = likeliest.findIndex(same);
  const rows = likeliest.map(([other, value], at) => row(other, value, at === drawn));
  // A token that wasn't among the likeliest has its own line at the end.
  if (drawn < 0) rows.push(row(text, logProb, true));
  const rest = 1 - likeliest.reduce((sum, [, value]) => sum + Math.exp(value), 0) - (drawn < 0 ? Math.exp(logProb) : 0);
  card().replaceChildren(
    make("p", { class: "drawn" }, make("code", { text: visible(text) }), make("strong", { text: percent(logProb) })),
    make("table", {}, make("caption", { class: "unseen", text: "Likeliest tokens here" }), make("tbody", {}, ...rows)),
    make("p", { class: "hint", text: rest > 0.001 ? `all others together ${percent(Math.log(rest))}` : "" }),
  );
  card().hidden = false;
  span.setAttribute("aria-describedby", "token-card");
  place(span);
}

function row(text, logProb, drawn) {
  const bar = make("span", { class: "bar" });
  bar.style.width = `${Math.max(1, 100 * Math.exp(logProb))}%`;
  return make("tr", { class: drawn ? "is-drawn" : "" }, make("th", { scope: "row" }, make("code", { text: visible(text) })), make("td", { class: "track" }, bar), make("td", { text: percent(logProb) }));
}

// Below the token where there is room, otherwise above it.
function place(span) {
  const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = card();
  const left = Math.max(8, Math.min(innerWidth - width - 8, box.left + box.width / 2 - width / 2));
  const below = box.bottom + 8 + height < innerHeight;
  card().style.left = `${left}px`;
  card().style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - 8 - height)}px`;
}
