// One message on the page. A view changes only what differs from the last time, so that long chats stay fast.

import { button, make } from "./build.js";
import { copyButton } from "./code.js";
import { number } from "./fit.js";
import { MarkdownView } from "./markdown.js";
import { TokenView } from "./tokens.js";

// A value that an element shows; `show` is called only for a new one.
function shown(show) {
  let known;
  return (value) => {
    const key = JSON.stringify(value);
    if (key !== known) show(value);
    known = key;
  };
}

// Setting an attribute to what it is already would still be a change to whoever watches the page.
const hide = (element, hidden) => element.hidden !== hidden && (element.hidden = hidden);

function pager(ui, message) {
  const element = make("div", { class: "pager", role: "group", "aria-label": "Branches" });
  const turn = (by) => ui.turn(message.id, by);
  const back = button("‹", null, () => turn(-1), { class: "quiet", "aria-label": "Earlier branch" });
  const next = button("›", null, () => turn(1), { class: "quiet", "aria-label": "Later branch" });
  const count = make("span", { class: "count" });
  element.append(back, count, next);
  const show = shown(([at, all]) => {
    element.hidden = all < 2;
    count.textContent = `${at + 1}/${all}`;
    back.disabled = at === 0;
    next.disabled = at === all - 1;
  });
  return { element, update: () => show([ui.tree.siblings(message.id).indexOf(message.id), ui.tree.siblings(message.id).length]) };
}

// A text field in place of a message; `save` gets the new text.
function editor(element, text, label, save, close) {
  const field = make("textarea", { "aria-label": label, rows: Math.min(14, text.split("\n").length + 1), dir: "auto" });
  field.value = text;
  const finish = () => (field.value.trim() && field.value !== text ? save(field.value) : null, close());
  field.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") (event.stopPropagation(), close());
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), finish());
  });
  const row = make("div", { class: "row end" }, button("Cancel", "Esc", close), button(label, "Ctrl Enter", finish, { class: "primary" }));
  element.replaceChildren(field, row);
  element.hidden = false;
  field.focus();
  field.setSelectionRange(text.length, text.length);
}

class MessageView {
  constructor(message, ui, label) {
    Object.assign(this, { message, ui });
    this.pager = pager(ui, message);
    this.body = make("div", { class: "body" });
    this.editing = make("div", { class: "editing", hidden: true });
    this.tools = make("footer", { class: "tools" });
    this.element = make("article", { class: `message ${message.role}`, "aria-label": label, "data-id": message.id, tabindex: "-1" });
  }

  edit(label, save) {
    this.body.hidden = this.tools.hidden = true;
    editor(this.editing, this.message.content, label, save, () => {
      this.editing.replaceChildren();
      this.editing.hidden = true;
      this.body.hidden = this.tools.hidden = false;
      this.element.focus({ preventScroll: true });
    });
  }

  // `forgotten`: whether the model no longer sees it; left out, that stays as it was.
  update({ forgotten = null } = {}) {
    if (forgotten !== null) this.element.classList.toggle("forgotten", forgotten);
    this.pager.update();
  }
}

export class QuestionView extends MessageView {
  constructor(message, ui) {
    super(message, ui, "You");
    this.text = make("div", { class: "text", dir: "auto" });
    this.body.append(this.text);
    this.tools.append(this.pager.element, copyButton(() => this.message.content), button("Edit", null, () => this.startEdit(), { class: "quiet edit" }));
    this.element.append(this.body, this.editing, this.tools);
  }

  startEdit() {
    this.edit("Ask", (text) => this.ui.editQuestion(this.message.id, text));
  }

  update(state) {
    super.update(state);
    if (this.text.textContent !== this.message.content) this.text.textContent = this.message.content;
  }
}

export class AnswerView extends MessageView {
  // `name`: how the answer is called instead of by its model, as A and B before a vote.
  constructor(message, ui, { name = null, inPair = false } = {}) {
    super(message, ui, name ? `Answer ${name}` : "Answer");
    this.inPair = inPair;
    this.head = make("header");
    this.thoughts = make("details", { class: "thoughts", hidden: true }, make("summary", { text: "Thoughts" }), make("div", { class: "text", dir: "auto" }));
    this.formatted = make("div", { class: "markdown" });
    this.raw = make("div", { class: "tokens text", dir: "auto", hidden: true });
    this.problem = make("div", { class: "problem", role: "alert", hidden: true });
    this.body.append(this.thoughts, this.formatted, this.raw);
    this.again = button("Regenerate", null, () => ui.regenerate(this.message.id), { class: "quiet again" });
    this.change = button("Edit", null, () => this.edit("Save", (text) => ui.editAnswer(this.message.id, text)), { class: "quiet edit", title: "Write a better answer; it becomes a branch" });
    this.facts = make("span", { class: "facts hint" });
    const copy = copyButton(() => this.message.content);
    this.tools.append(...(inPair ? [copy] : [this.pager.element, copy, this.again, this.change]), this.facts);
    this.element.append(this.head, this.body, this.problem, this.editing, this.tools);
    this.markdown = new MarkdownView(this.formatted);
    this.tokens = new TokenView(this.raw);
    this.showHead = shown((parts) => this.head.replaceChildren(...this.headParts(parts)));
    this.showProblem = shown(([kind, text]) => this.fillProblem(kind, text));
    this.showRunning = shown((running) => {
      this.element.classList.toggle("running", running);
      this.element.setAttribute("aria-busy", String(running));
    });
    this.showFacts = shown((text) => (this.facts.textContent = text));
    this.name = name;
  }

  headParts({ name, tags }) {
    return [make("h2", { class: name.length === 1 ? "badge" : "speaker", text: name }), ...tags.map((text) => make("span", { class: "tag", text }))];
  }

  fillProblem(kind, text) {
    this.problem.hidden = !kind;
    const retry = button("Retry", null, () => this.ui.retry(this.message.id), { class: "retry" });
    this.problem.replaceChildren(make("p", { text }), retry);
  }

  update(state = {}) {
    super.update(state);
    const { message, ui } = this;
    const running = ui.isRunning(message);
    const abandoned = !running && message.finish === null;
    this.showRunning(running);
    this.showHead({ name: this.name ?? (message.edited ? "Edited by you" : shortName(message.version ?? message.model)), tags: tagsOf(message, state.tags) });
    hide(this.thoughts, !message.thoughts);
    if (message.thoughts) {
      const text = this.thoughts.lastElementChild;
      if (text.textContent !== message.thoughts) text.textContent = message.thoughts.trim();
      const summary = running && !message.content ? "Thinking …" : "Thoughts";
      if (this.thoughts.firstElementChild.textContent !== summary) this.thoughts.firstElementChild.textContent = summary;
    }
    const asTokens = ui.probabilities && Boolean(message.tokens?.length);
    hide(this.raw, !asTokens);
    hide(this.formatted, asTokens);
    if (asTokens) this.tokens.update(message.tokens);
    else this.markdown.update(message.content);
    const kind = message.finish === "error" ? "error" : abandoned ? "abandoned" : null;
    this.showProblem([kind, message.error ?? "The answer was cut off when its window closed."]);
    for (const tool of [this.again, this.change]) hide(tool, running || Boolean(kind));
    this.showFacts(running ? "" : factsOf(message, ui.probabilities));
  }
}

// `assistant/3` for models:/assistant/3; of a folder, the name of its run.
export function shortName(version) {
  if (!version) return "Model";
  if (version.startsWith("models:/")) return version.slice("models:/".length);
  const parts = version.split("/").filter(Boolean);
  return (["export", "adapter"].includes(parts.at(-1)) && parts.at(-2)) || parts.at(-1);
}

function tagsOf(message, more = []) {
  const tags = [...more];
  if (message.finish === "length") tags.push("cut off at the longest answer");
  if (message.finish === "stopped") tags.push("stopped");
  return tags;
}

function factsOf({ usage, seconds, edited, seed, tokens, finish }, probabilities) {
  if (edited || finish === "error") return "";
  const facts = [];
  if (usage) facts.push(`${number(usage.answer)} tokens`);
  if (usage && seconds > 0.05) facts.push(`${number(Math.round(usage.answer / seconds))} per second`);
  if (seed != null) facts.push(`seed ${seed}`);
  if (probabilities && !tokens?.length) facts.push("no probabilities were asked for");
  return facts.join(" · ");
}
