// The page: what is open, what the keys and buttons do, and what is said.

import * as api from "./api.js";
import { button, make } from "./build.js";
import { askKey, askName, showDialog, showKeys } from "./dialogs.js";
import { number } from "./fit.js";
import { Library } from "./library.js";
import { lineage } from "./lineage.js";
import { shortName } from "./message_view.js";
import { rememberSettings, settingFields, startingSettings } from "./options.js";
import { Session } from "./session.js";
import { Sidebar } from "./sidebar.js";
import { openStorage, remembered } from "./storage.js";
import { Thread } from "./thread.js";
import { hideCard } from "./tokens.js";

const find = (id) => document.getElementById(id);
const coarse = matchMedia("(pointer: coarse)");
const SPOKEN_CHARACTERS = 600;
const REFRESH_MS = 400;
const CHECK_MS = 3000;
const KEYS = [
  [["Enter"], "send"],
  [["Shift Enter"], "new line"],
  [["Esc"], "stop the answer, or leave the field so that single keys work"],
  [["↑"], "edit your last message, from an empty field"],
  [["Ctrl K"], "new chat"],
  [["A", "T", "B", "X"], "vote: A, tie, B, both bad"],
  [["P"], "show or hide probabilities"],
  [["?"], "show these shortcuts"],
];

let models = [];
let server = { votes: false, key: false };
let session;
let thread;
let sidebar;
let storage;
let library;

const page = { shown, listed: list, changed: (message) => thread.changed(message), ended, say, trouble, name: annotator };

// What the views of messages may do and ask.
const ui = {
  get tree() {
    return session.tree;
  },
  get probabilities() {
    return session.probabilities;
  },
  get votes() {
    return session.votes;
  },
  isRunning: (message) => session.isRunning(message),
  regenerate: (id) => session.regenerate(id),
  retry: (id) => session.retry(id),
  editQuestion: (id, text) => session.editQuestion(id, text),
  editAnswer: (id, text) => session.editAnswer(id, text),
  turn: (id, by) => session.turn(id, by),
  vote: (id, choice) => session.vote(id, choice),
  takeBack: (id) => session.takeBack(id),
  continueWith: (id, answer) => session.continueWith(id, answer),
};

let shownId = null;

// Show the conversation. `here`: something happened in this window.
function shown({ here = true, toEnd = false, focus = null } = {}) {
  const { id, title, settings } = session.conversation;
  const follow = toEnd || (here && shownId !== id);
  if (shownId !== id) {
    thread.clear();
    hideCard();
  }
  shownId = id;
  thread.show();
  find("greeting").hidden = session.stored;
  if (session.stored) history.replaceState(null, "", `#${id}`);
  else history.replaceState(null, "", location.pathname + location.search);
  document.title = title || "Raymill";
  showControls(settings);
  showMeter();
  if (here) list();
  if (follow) thread.toEnd();
  if (focus) document.querySelector(`[data-id="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
}

function showControls(settings) {
  // A conversation may be older than the models that are served now.
  for (const name of ["model", "other"]) if (!models.some(({ id }) => id === settings[name])) settings[name] = models[0].id;
  for (const [id, value] of [["model", settings.model], ["other", settings.other]]) {
    if (find(id).value !== value) find(id).value = value;
  }
  find("other").hidden = find("versus").hidden = !settings.compare;
  find("compare").setAttribute("aria-pressed", String(Boolean(settings.compare)));
  find("probabilities").setAttribute("aria-pressed", String(session.probabilities));
  showRunning();
}

function showRunning() {
  const running = session.running.length > 0;
  find("stop").hidden = !running;
  find("send").hidden = running;
}

function showMeter() {
  const last = session.tree.path().findLast(({ role, usage, positions }) => role === "assistant" && usage && positions);
  find("meter").hidden = !last;
  if (!last) return;
  const used = last.usage.prompt + last.usage.answer;
  find("meter-fill").style.width = `${Math.min(100, (100 * used) / last.positions)}%`;
  find("meter-text").textContent = `${number(used)} of ${number(last.positions)} positions`;
}

function ended(answers) {
  thread.flush();
  showRunning();
  showMeter();
  const [{ finish, content, error }] = answers;
  const whole = answers.length > 1 ? "Both answers are complete." : finish === "error" ? error : content.slice(0, SPOKEN_CHARACTERS);
  find("announcement").textContent = finish === "stopped" ? "Stopped." : whole;
}

async function list() {
  sidebar.show(await storage.conversations(), session.conversation.id);
}

function say(text, wrong = false, action = null) {
  find("announcement").textContent = text;
  const toast = find("toast");
  toast.className = wrong ? "wrong" : "";
  toast.replaceChildren(make("span", { text }), ...(action ? [action] : []));
  toast.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (toast.hidden = true), wrong || action ? 8000 : 4000);
}

function trouble(text) {
  find("trouble").replaceChildren(text ?? "");
  find("trouble").hidden = !text;
}

// The name under which votes are stored; null if nobody gives one.
async function annotator() {
  const known = remembered.read("name", "");
  if (known) return known;
  const name = await askName("");
  if (name) remembered.write("name", name);
  return name;
}

function send() {
  const text = find("text").value;
  if (!text.trim() || session.running.length) return;
  find("text").value = "";
  grow();
  remembered.write("draft", "");
  session.ask(text);
}

function grow() {
  const field = find("text");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, innerHeight * 0.4)}px`;
}

function fresh() {
  session.start(startingSettings(models));
  closeDrawer();
  find("text").focus();
}

async function openConversation(id) {
  closeDrawer();
  if (!(await session.open(id))) return fresh();
  if (!coarse.matches) find("text").focus();
}

function closeDrawer() {
  document.body.classList.remove("drawer");
  find("menu").setAttribute("aria-expanded", "false");
}

function changeSettings(changes) {
  Object.assign(session.conversation.settings, changes);
  rememberSettings(session.conversation.settings);
  if (session.stored) session.saveConversation();
  showControls(session.conversation.settings);
}

function showSettings() {
  showDialog("Settings", settingFields(session.conversation.settings, () => changeSettings({}), server), { wide: true });
}

function showLineage() {
  const { settings } = session.conversation;
  const ids = settings.compare ? [...new Set([settings.model, settings.other])] : [settings.model];
  const parts = ids.map((id) => lineage(models.find((model) => model.id === id)));
  showDialog("Where this model comes from", parts, { wide: true });
}

function toggleProbabilities() {
  session.probabilities = !session.probabilities;
  remembered.write("probabilities", session.probabilities);
  hideCard();
  shown({ here: false });
  if (session.probabilities) say("Answers from now on show each token's probability; point at a token for the alternatives.");
}

function onKey(event) {
  if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
  const control = event.ctrlKey || event.metaKey;
  const typing = event.target.matches("textarea, input, select");
  if (control && event.key.toLowerCase() === "k") return event.preventDefault(), fresh();
  if (event.key === "Escape") {
    if (session.running.length) return event.preventDefault(), session.stop();
    if (document.body.classList.contains("drawer")) return closeDrawer();
    // Without the focus on the field, single keys vote.
    return event.target.blur();
  }
  if (typing || control || event.altKey) return;
  const actions = { "?": () => showKeys(KEYS), p: toggleProbabilities };
  if (actions[event.key]) return event.preventDefault(), actions[event.key]();
  if (thread.pair?.choose(event.key)) event.preventDefault();
}

function onTextKey(event) {
  if (event.isComposing) return;
  // On a touch screen, Enter is the only way to a new line.
  if (event.key === "Enter" && !event.shiftKey && !coarse.matches) return event.preventDefault(), send();
  if (event.key === "ArrowUp" && !find("text").value) {
    const last = [...document.querySelectorAll(".message.user .edit")].at(-1);
    if (last) return event.preventDefault(), last.click();
  }
}

function fillModels() {
  for (const id of ["model", "other"]) find(id).replaceChildren(...models.map((model) => make("option", { value: model.id, text: shortName(model.id) })));
  const [first] = models;
  find("greeting-votes").hidden = !server.votes;
  find("greeting-title").textContent = `Talk to ${shortName(first.version ?? first.id)}`;
}

function listen() {
  const on = (id, event, action) => find(id).addEventListener(event, action);
  document.addEventListener("keydown", onKey);
  on("text", "keydown", onTextKey);
  on("text", "input", () => (grow(), remembered.write("draft", find("text").value)));
  on("send", "click", send);
  on("stop", "click", () => session.stop());
  on("new", "click", fresh);
  on("settings", "click", showSettings);
  on("lineage", "click", showLineage);
  on("probabilities", "click", toggleProbabilities);
  on("compare", "click", () => changeSettings({ compare: !session.conversation.settings.compare }));
  on("model", "change", () => changeSettings({ model: find("model").value }));
  on("other", "change", () => changeSettings({ other: find("other").value }));
  on("help", "click", () => showKeys(KEYS));
  on("import", "click", () => find("file").click());
  on("file", "change", () => (find("file").files[0] && library.importFile(find("file").files[0]), (find("file").value = "")));
  on("export", "click", () => library.exportAll());
  on("menu", "click", () => find("menu").setAttribute("aria-expanded", String(document.body.classList.toggle("drawer"))));
  on("shade", "click", closeDrawer);
  addEventListener("scroll", hideCard, { passive: true });
  addEventListener("hashchange", () => location.hash.slice(1) !== session.conversation.id && openConversation(location.hash.slice(1)));
}

// Other windows report every second while they write; the list is read again once for several reports.
function follow() {
  let waiting = 0;
  const changed = new Set();
  storage.onChange(({ conversation, removed }) => {
    if (removed) session.forget(conversation);
    else {
      session.deleted.delete(conversation);
      changed.add(conversation);
    }
    if (removed && conversation === session.conversation.id) {
      fresh();
      say("The conversation was deleted in another window.");
    }
    waiting ||= setTimeout(() => {
      waiting = 0;
      for (const id of changed) session.refresh(id);
      changed.clear();
      list();
    }, REFRESH_MS);
  });
  // An answer that another window has stopped writing without a word is shown as cut off.
  setInterval(() => session.tree.path().at(-1)?.finish === null && thread.show(), CHECK_MS);
}

async function start() {
  api.setKeyDialog(askKey);
  server = await api.settings();
  storage = await openStorage();
  session = new Session(storage, page);
  session.votes = server.votes;
  session.probabilities = remembered.read("probabilities", false);
  thread = new Thread(find("thread"), ui);
  library = new Library(storage, session, { list, fresh, open: openConversation, say, settings: () => startingSettings(models) });
  sidebar = new Sidebar(find("conversations"), { open: openConversation, manage: (id) => library.manage(id) });
  const served = await api.models();
  models = served.filter(({ chat }) => chat !== false);
  if (!models.length) throw new Error(served.length ? "The models of this server have no chat template: they only continue text, with /v1/completions." : "This server serves no model.");
  fillModels();
  listen();
  follow();
  const asked = location.hash.slice(1);
  if (!asked || !(await session.open(asked))) fresh();
  find("text").value = remembered.read("draft", "");
  grow();
  if (!storage.lasting) trouble("This browser stores nothing for this page, so the conversations end with the window.");
  document.body.dataset.state = "ready";
}

start().catch((error) => {
  trouble(error.message);
  find("trouble").append(" ", button("Retry", null, () => location.reload(), { class: "retry" }));
});
