// Answers: the request, what arrives, and the moment at which it ends. An answer is a message of the tree, which
// grows; whoever shows it is told.

import { ApiError, chunks, countTokens } from "./api.js";
import { fit } from "./fit.js";
import { TokenText } from "./token_text.js";
import { turnsOf } from "./tree.js";

const SAVE_MS = 1000;
// An answer that another window writes is saved every second; one that is older was cut off.
export const ABANDONED_MS = 6000;
const ALTERNATIVES = 5;
const NUMBERS = { temperature: 1, top_p: 1, max_tokens: 512 };
const OPTIONAL = ["top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"];

export function sampling(settings) {
  const found = {};
  for (const [name, usual] of Object.entries(NUMBERS)) found[name] = settings[name] ?? usual;
  for (const name of OPTIONAL) if (settings[name] != null) found[name] = settings[name];
  const stop = (settings.stop ?? "").split("\n").filter(Boolean);
  if (stop.length) found.stop = stop;
  return found;
}

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;

// Fit the turns for a model; `path` ends with the question, and `least` turns are left out at any rate.
export function fitted(model, path, settings, signal, least = 0) {
  const before = path.findLast((message) => message.role === "assistant" && message.dropped != null);
  const start = Math.max(least, before?.dropped ?? 0);
  return fit(settings.system, turnsOf(path), sampling(settings).max_tokens, (messages) => countTokens(model, messages, signal), start);
}

// The messages that an answer's model saw.
export function seenBy(answer, path) {
  const system = answer.system ? [{ role: "system", content: answer.system }] : [];
  return [...system, ...turnsOf(path).slice(2 * (answer.dropped ?? 0)).map(({ role, content }) => ({ role, content }))];
}

export class Answering {
  // `changed(message)`: something arrived; `save(message)`: it should be stored.
  constructor({ changed, save }) {
    this.running = new Map();
    this.changed = changed;
    this.save = save;
  }

  has(id) {
    return this.running.has(id);
  }

  stop(id) {
    this.running.get(id)?.abort();
  }

  // Fill an answer. `prompt`: resolves to what `fitted` returns.
  async fill(answer, prompt, settings, probabilities) {
    const controller = new AbortController();
    this.running.set(answer.id, controller);
    Object.assign(answer, { started: Date.now(), beat: Date.now(), finish: null, error: null });
    this.changed(answer);
    let saved = 0;
    try {
      const { messages, dropped, positions, used } = await prompt(controller.signal);
      Object.assign(answer, { dropped, positions });
      const asked = { ...sampling(settings), seed: answer.seed };
      // Where the server counted, the longest answer that fits is known.
      if (positions) asked.max_tokens = Math.min(asked.max_tokens, positions - used);
      answer.settings = asked;
      const body = { model: answer.model, messages, ...asked, ...(probabilities && { logprobs: true, top_logprobs: ALTERNATIVES }) };
      const text = probabilities ? new TokenText() : null;
      if (text) answer.tokens = [];
      for await (const chunk of chunks(body, controller.signal, (version) => (answer.version = version))) {
        receive(answer, chunk, text);
        this.changed(answer);
        if (Date.now() - saved > SAVE_MS) {
          saved = answer.beat = Date.now();
          this.save(answer);
        }
      }
      answer.finish ??= "stop";
    } catch (error) {
      if (error.name === "AbortError") answer.finish = "stopped";
      else {
        answer.finish = "error";
        answer.error = sentence(error);
      }
    }
    answer.seconds = (Date.now() - answer.started) / 1000;
    this.running.delete(answer.id);
    this.changed(answer);
    this.save(answer);
  }
}

function receive(answer, chunk, text) {
  if (chunk.version) answer.version = chunk.version;
  if (chunk.id) answer.completion = chunk.id;
  if (chunk.usage) answer.usage = { prompt: chunk.usage.prompt_tokens, answer: chunk.usage.completion_tokens };
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { content, reasoning_content: thought } = choice.delta ?? {};
  if (thought) answer.thoughts = (answer.thoughts ?? "") + thought;
  if (content) {
    answer.content += content;
    answer.first ??= Date.now() - answer.started;
  }
  for (const token of choice.logprobs?.content ?? []) answer.tokens?.push(text.read(token));
  if (choice.finish_reason) answer.finish = choice.finish_reason;
}

function sentence(error) {
  if (!(error instanceof ApiError) || !error.waitS) return error.message;
  return `${error.message} Try again in ${error.waitS} s.`;
}
