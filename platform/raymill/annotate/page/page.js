// The page: the current task, its keyboard shortcuts, and the server's responses.

import { button, renderGuide, make } from "/build.js";
import { askName, showKeys, write } from "/dialogs.js";
import { pairView } from "/pair.js";
import { rankingView } from "/ranking.js";
import { about, Closed, freshId, post, Refused } from "/server.js";
import { reviewView, writingView } from "/writing.js";

const find = (id) => document.getElementById(id);
// A key pressed twice must not decide the next task as well.
const TOO_SOON_MS = 250;
const KEEP_MS = 60000;
const POLL_MS = { preparing: 2000, busy: 5000, done: 15000, failed: 10000 };
const NOTICES = {
  preparing: ["The next answers are being sampled", "This page continues by itself once they are ready."],
  busy: ["Other annotators are working on the remaining tasks", "If one of them stops, the task becomes yours in a few minutes."],
  done: ["That was all. Thank you!", "All your decisions are stored. New tasks appear here by themselves."],
  failed: ["There is nothing to rank", ""],
};

let me = localStorage.getItem("raymill-name");
let mode = "rank";
let task = null;
let view = null;
let busy = false;
let poll = 0;
let seen = { since: null, total: 0, shown: 0 };
let active = false;

const ui = {
  say,
  draft: (name) => {
    const key = `raymill-draft ${me} ${name}`;
    return { read: () => localStorage.getItem(key), write: (text) => localStorage.setItem(key, text), clear: () => localStorage.removeItem(key) };
  },
  write: ({ draft = null, ...options }) => write({ ...options, draft: draft && ui.draft(`edit ${draft}`) }),
  async decide(path, body, message) {
    if (performance.now() - seen.shown < TOO_SOON_MS) return false;
    return send(path, { id: freshId(), item: task.item, seconds: Math.min(86400, seconds()), ...body }, message, true);
  },
};

async function send(path, body, message = null, undoable = false) {
  if (busy) return false;
  busy = true;
  clearTimeout(poll);
  document.body.classList.add("busy");
  try {
    show(await post(path, { annotator: me, ...body }, trouble));
    if (message) say(message, false, undoable);
    return true;
  } catch (error) {
    if (error instanceof Closed) trouble(error.message);
    else if (error instanceof Refused) await refused(error);
    else throw error;
    return false;
  } finally {
    busy = false;
    document.body.classList.remove("busy");
  }
}

async function refused(error) {
  if (error.message.startsWith("A name")) {
    me = (await askName(me, error.message)) ?? me;
    localStorage.setItem("raymill-name", me);
    setTimeout(() => send("/api/next", {}));
    return;
  }
  // Another annotator, or another window, was faster: fetch the current task.
  const state = await post("/api/next", { annotator: me }, trouble);
  if (JSON.stringify(state.task) !== JSON.stringify(task)) show(state);
  else document.querySelectorAll(".chosen").forEach((card) => card.classList.remove("chosen"));
  say(error.message, true);
}

function show(state) {
  task = state.task;
  me = state.annotator;
  find("me").textContent = me;
  showProgress(state.progress);
  view = task ? viewOf(task) : null;
  find("work").replaceChildren(view ? view.element : notice(state));
  find("actions").replaceChildren(...(view ? view.actions : []));
  find("actions").hidden = !view;
  document.body.dataset.state = task?.kind ?? state.state;
  seen = { since: document.hidden ? null : performance.now(), total: 0, shown: performance.now() };
  if (!task) poll = setTimeout(() => send("/api/next", {}), POLL_MS[state.state]);
  if (document.querySelector("dialog[open]")) return;
  scrollTo(0, 0);
  (view?.focus ?? find("work")).focus({ preventScroll: true });
}

function viewOf({ kind, answers }) {
  if (kind === "write") return writingView(task, ui);
  if (kind === "review") return reviewView(task, ui);
  return answers.length === 2 ? pairView(task, ui) : rankingView(task, ui);
}

function notice({ state, why, progress }) {
  const [title, text] = NOTICES[state];
  const made = state === "preparing" ? ` ${progress.ready} of ${progress.items} questions have answers.` : "";
  return make("section", { class: `notice ${state}` }, make("div", { class: "sign", "aria-hidden": "true" }), make("h2", { text: title }), make("p", { text: `${why ?? text}${made}` }));
}

function showProgress({ mine, done, total, reviews }) {
  find("track").setAttribute("aria-valuemax", total);
  find("track").setAttribute("aria-valuenow", done);
  find("fill").style.width = `${total ? (100 * done) / total : 0}%`;
  const all = mode === "rank" ? " by all" : ` accepted${reviews ? ` · ${reviews} to review` : ""}`;
  find("counts").replaceChildren(make("strong", { text: mine }), " by you · ", make("strong", { text: done }), ` of ${total}${all}`);
}

function say(text, wrong = false, undoable = false) {
  find("announcement").textContent = text;
  const toast = find("toast");
  toast.className = wrong ? "wrong" : "";
  toast.replaceChildren(make("span", { text }), ...(undoable ? [button("Undo", "U", undo)] : []));
  toast.hidden = false;
  toast.getAnimations().forEach((animation) => animation.cancel());
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (toast.hidden = true), wrong ? 8000 : 4000);
}

function trouble(text) {
  find("trouble").textContent = text ?? "";
  find("trouble").hidden = !text;
}

function seconds() {
  return (seen.total + (seen.since === null ? 0 : performance.now() - seen.since)) / 1000;
}

const undo = () => send("/api/undo", { id: freshId() }, "Undone");

function toggleGuide(open = find("guide").hidden) {
  find("guide").hidden = !open;
  find("guide-button").setAttribute("aria-expanded", String(open));
  localStorage.setItem("raymill-guide", open ? "open" : "closed");
}

const help = () => showKeys([...(view?.help ?? []), [["U"], "undo the last decision"], [["I"], "show or hide the guide"], [["?"], "show these shortcuts"]]);

function onKey(event) {
  active = true;
  if (event.defaultPrevented || event.repeat || event.isComposing || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("textarea, input");
  const control = event.ctrlKey || event.metaKey;
  if (typing && event.key === "Escape") return event.target.blur();
  if (event.altKey || (typing && !(control && event.key === "Enter"))) return;
  if (event.key === "Enter" && !control && event.target.closest("button, a")) return;
  const name = `${control ? "Ctrl+" : ""}${event.shiftKey && event.key.startsWith("Arrow") ? "Shift+" : ""}${event.key.length === 1 ? event.key.toLowerCase() : event.key}`;
  const action = view?.keys[name] ?? { u: undo, i: () => toggleGuide(), "?": help }[name];
  if (!action) return;
  event.preventDefault();
  action();
}

document.addEventListener("keydown", onKey);
document.addEventListener("pointerdown", () => (active = true));
document.addEventListener("visibilitychange", () => {
  if (document.hidden && seen.since !== null) seen = { ...seen, total: seen.total + performance.now() - seen.since, since: null };
  else if (!document.hidden && seen.since === null) seen.since = performance.now();
});
find("undo").addEventListener("click", undo);
find("guide-button").addEventListener("click", () => toggleGuide());
find("keys-button").addEventListener("click", help);
find("me").addEventListener("click", async () => {
  const name = await askName(me);
  if (name === null) return;
  me = name;
  localStorage.setItem("raymill-name", me);
  send("/api/next", {});
});
setInterval(() => {
  if (task && active && !busy) post("/api/keep", { annotator: me }).catch(() => {});
  active = false;
}, KEEP_MS);

async function start() {
  const info = await about();
  mode = info.mode;
  find("title").textContent = mode === "rank" ? "Rank answers" : "Write answers";
  document.title = find("title").textContent;
  find("guide").replaceChildren(...renderGuide(info.instructions), button("Hide", "I", () => toggleGuide(), { class: "quiet" }));
  toggleGuide(localStorage.getItem("raymill-guide") !== "closed");
  if (!me) {
    me = await askName(null);
    localStorage.setItem("raymill-name", me);
  }
  await send("/api/next", {});
}

start().catch((error) => trouble(error.message));
