// Settings of a conversation: models, system prompt and sampling.

import { apiKey } from "./api.js";
import { make } from "./build.js";
import { remembered } from "./storage.js";

const NUMBERS = [
  ["temperature", "Temperature", "0 always takes the likeliest token; above 1 is wilder.", { min: 0, max: 2, step: "any", placeholder: "1" }],
  ["top_p", "Top-p", "Sample from the likeliest tokens of this total probability.", { min: 0.01, max: 1, step: "any", placeholder: "1" }],
  ["max_tokens", "Longest answer", "Tokens of an answer, thoughts included.", { min: 1, step: 1, placeholder: "512" }],
  ["seed", "Seed", "The same seed gives the same answer; empty: a new one each time.", { min: 0, max: 2 ** 31 - 1, step: 1, placeholder: "random" }],
];
const MORE = [
  ["top_k", "Top-k", "Sample from that many of the likeliest tokens.", { min: 1, step: 1, placeholder: "all" }],
  ["min_p", "Min-p", "Leave out tokens below this share of the likeliest one's probability.", { min: 0, max: 1, step: "any", placeholder: "0" }],
  ["presence_penalty", "Presence penalty", "Against tokens that the answer has already.", { min: -2, max: 2, step: "any", placeholder: "0" }],
  ["frequency_penalty", "Frequency penalty", "The same, for every time that it has them.", { min: -2, max: 2, step: "any", placeholder: "0" }],
  ["repetition_penalty", "Repetition penalty", "Against tokens of the whole conversation; 1 changes nothing.", { min: 0.1, max: 2, step: "any", placeholder: "1" }],
];
const USUAL = { model: null, other: null, compare: false, system: "", temperature: null, top_p: null, max_tokens: null, seed: null };

// Settings that a new conversation begins with; models that aren't served any more are replaced.
export function startingSettings(models) {
  const known = remembered.read("chat-settings", {});
  const ids = models.map(({ id }) => id);
  const model = ids.includes(known.model) ? known.model : ids[0];
  return { ...USUAL, ...known, model, other: ids.includes(known.other) ? known.other : model };
}

export const rememberSettings = (settings) => remembered.write("chat-settings", settings);

function numberField(settings, changed, [name, label, hint, limits]) {
  const id = `setting-${name}`;
  const field = make("input", { id, type: "number", inputmode: "decimal", "aria-describedby": `${id}-hint`, ...limits });
  field.value = settings[name] ?? "";
  field.addEventListener("input", () => {
    if (!field.validity.valid) return;
    settings[name] = field.value === "" ? null : Number(field.value);
    changed();
  });
  return make("div", { class: "setting" }, make("label", { for: id, text: label }), field, make("p", { class: "hint", id: `${id}-hint`, text: hint }));
}

function textField(id, label, hint, value, store, settings = {}) {
  const { tag = "input", ...others } = settings;
  const field = make(tag, { id, "aria-describedby": `${id}-hint`, ...others });
  field.value = value ?? "";
  field.addEventListener("input", () => store(field.value));
  return make("div", { class: "setting whole" }, make("label", { for: id, text: label }), field, make("p", { class: "hint", id: `${id}-hint`, text: hint }));
}

// Fields of the settings dialog; `changed` is called after each change.
export function settingFields(settings, changed, { votes, key }) {
  const put = (name) => (value) => ((settings[name] = value), changed());
  const numbers = (list) => make("div", { class: "settings-grid" }, ...list.map((one) => numberField(settings, changed, one)));
  const isMore = [...MORE.map(([name]) => name), "stop"].some((name) => settings[name] != null && settings[name] !== "");
  return [
    textField("setting-system", "System prompt", "Instructions that stand before the conversation; they count from the next answer on.", settings.system, put("system"), { tag: "textarea", rows: 3, dir: "auto" }),
    numbers(NUMBERS),
    make("details", { open: isMore }, make("summary", { text: "More" }), numbers(MORE), textField("setting-stop", "Stop texts", "One a line; an answer ends before the first of them.", settings.stop, put("stop"), { tag: "textarea", rows: 2 })),
    votes ? textField("setting-name", "Your name", "It is stored with your votes.", remembered.read("name", ""), (value) => remembered.write("name", value), { maxlength: 64, autocomplete: "nickname" }) : null,
    key ? textField("setting-key", "API key", "It is kept until this window closes.", apiKey.get(), apiKey.set, { type: "password", autocomplete: "off" }) : null,
  ].filter(Boolean);
}
