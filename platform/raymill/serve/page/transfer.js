// Conversations as files: JSON with all branches, which can be imported again, and Markdown of one branch.

import { make } from "./build.js";
import { shortName } from "./message_view.js";
import { freshId, Tree } from "./tree.js";

const FORMAT = "raymill-chat";
const VERSION = 1;
const ROLES = ["user", "assistant"];
const isText = (value) => typeof value === "string";
const isNumber = (value) => typeof value === "number";
const isFlag = (value) => typeof value === "boolean";
const isToken = (value) => Array.isArray(value) && isText(value[0]) && isNumber(value[1]) && Array.isArray(value[2]) && value[2].every((other) => isText(other?.[0]) && isNumber(other?.[1]));
// What is read of a message, and the form that it must have.
const KEPT = {
  role: isText, content: isText, time: isNumber, thoughts: isText, model: isText, version: isText, seed: isNumber, system: isText, finish: isText,
  error: isText, dropped: isNumber, positions: isNumber, seconds: isNumber, started: isNumber, edited: isFlag, settled: isFlag, vote: isText,
  settings: (value) => typeof value === "object", voted: (value) => isText(value.id) && isText(value.annotator), corrected: (value) => isText(value.id) && isText(value.annotator),
  usage: (value) => isNumber(value.prompt) && isNumber(value.answer), tokens: (value) => Array.isArray(value) && value.every(isToken),
};
const LARGEST_BYTES = 64 * 2 ** 20;

export function asJson(conversations) {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

export function asMarkdown(conversation, path) {
  const parts = [`# ${conversation.title || "Conversation"}`];
  const { system } = conversation.settings;
  if (system) parts.push(`**System:** ${system}`);
  for (const message of path) {
    const who = message.role === "user" ? "You" : message.edited ? "Edited by you" : shortName(message.version ?? message.model);
    parts.push(`## ${who}`, message.content);
  }
  return `${parts.join("\n\n")}\n`;
}

export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

export function fileName(title, ending) {
  const stem = (title || "conversation").toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40);
  return `${stem || "conversation"}.${ending}`;
}

// Read an exported file; return [{ conversation, messages }] with fresh ids, so that nothing is overwritten.
export async function read(file) {
  if (file.size > LARGEST_BYTES) throw new Error(`${file.name} is larger than 64 MiB, so it isn't an export of this page.`);
  let found;
  try {
    found = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} isn't JSON: choose a file that this page exported.`);
  }
  if (found?.format !== FORMAT || !Array.isArray(found.conversations)) throw new Error(`${file.name} isn't an export of this page.`);
  if (found.version !== VERSION) throw new Error(`${file.name} has version ${found.version} of the format, and this page reads ${VERSION}.`);
  return found.conversations.map((one, at) => renewed(one, `${file.name}, conversation ${at + 1}`));
}

function renewed({ messages, ...conversation }, where) {
  const wrong = (what) => new Error(`${where}: ${what}`);
  if (!Array.isArray(messages)) throw wrong("messages is missing.");
  const ids = new Map(messages.map(({ id }) => [id, freshId()]));
  const known = (id) => ids.get(id) ?? null;
  const records = messages.map((message, at) => {
    if (!ROLES.includes(message.role) || typeof message.content !== "string" || typeof message.time !== "number") throw wrong(`message ${at + 1} needs a role, a content and a time.`);
    if (message.parent !== "" && !ids.has(message.parent)) throw wrong(`message ${at + 1} follows a message that isn't there.`);
    const parts = Object.entries(KEPT).filter(([name, fits]) => message[name] != null && fits(message[name]));
    const links = { id: known(message.id), parent: message.parent && known(message.parent), from: message.from && known(message.from) };
    return { ...Object.fromEntries(parts.map(([name]) => [name, message[name]])), ...links, pair: Array.isArray(message.pair) ? message.pair.map(known) : undefined };
  });
  if (new Tree(records).path().length === 0 && records.length) throw wrong("the messages follow each other in a circle.");
  const choices = Object.fromEntries(Object.entries(conversation.choices ?? {}).map(([parent, child]) => [parent && known(parent), known(child)]));
  const title = typeof conversation.title === "string" ? conversation.title : "";
  return { conversation: { id: freshId(), title, created: Number(conversation.created) || Date.now(), settings: conversation.settings ?? {}, choices }, messages: records };
}
