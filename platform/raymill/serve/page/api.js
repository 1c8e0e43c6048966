// Requests to the server: OpenAI's API, a key where the server wants one, and errors as sentences.

const KEY = "raymill-key";
// The page may be served below a prefix, behind a proxy.
export const at = (path) => new URL(path, document.baseURI);

export class ApiError extends Error {
  constructor(message, { status = 0, waitS = 0, code = null } = {}) {
    super(message);
    Object.assign(this, { status, waitS, code });
  }
}

// Ask a person for a key, given the reason; the page sets it. Several requests that need a key ask once.
let asking = null;
let ask = async () => null;
export const setKeyDialog = (dialog) => (ask = dialog);

export const apiKey = {
  get: () => sessionStorage.getItem(KEY),
  set: (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)),
};

async function keyFromPerson(reason) {
  asking ??= ask(reason).finally(() => (asking = null));
  const key = await asking;
  if (!key) throw new ApiError("This server wants an API key.", { status: 401 });
  apiKey.set(key);
}

async function call(path, { body, signal } = {}) {
  for (;;) {
    const key = apiKey.get();
    const headers = { ...(key && { authorization: `Bearer ${key}` }), ...(body && { "content-type": "application/json" }) };
    let response;
    try {
      response = await fetch(at(path), { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server can't be reached.");
    }
    if (response.status !== 401) {
      if (response.ok) return response;
      throw await refusal(response);
    }
    await keyFromPerson(key ? (await refusal(response)).message : "");
  }
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy in between answers with a page of its own.
  }
  const waitS = Number(response.headers.get("retry-after")) || 0;
  const message = error.message ?? `The server answered with the status ${response.status}.`;
  return new ApiError(message, { status: response.status, waitS, code: error.code });
}

export async function settings() {
  return (await call("page/settings.json")).json();
}

export async function models() {
  return (await (await call("v1/models")).json()).data;
}

// Count a prompt's tokens; null where the server can't, because the model has no chat template, say.
export async function countTokens(model, messages, signal) {
  try {
    const found = await (await call("tokenize", { body: { model, messages }, signal })).json();
    return { count: found.count, positions: found.positions ?? null };
  } catch (error) {
    if (error instanceof ApiError && [400, 404, 405, 422].includes(error.status)) return null;
    throw error;
  }
}

export async function post(path, body) {
  return (await call(path, { body })).json();
}

// Request an answer; give the version that answers, and the chunks as they arrive.
export async function* chunks(body, signal, onStart = () => {}) {
  const response = await call("v1/chat/completions", { body: { ...body, stream: true, stream_options: { include_usage: true } }, signal });
  onStart(response.headers.get("x-raymill-version"));
  let ended = false;
  for await (const { event, data } of serverSentEvents(response.body, signal)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (event === "error" || chunk.error) throw new ApiError(chunk.error?.message ?? "The answer failed.", { code: chunk.error?.code });
    yield chunk;
  }
  if (!ended) throw new ApiError("The connection ended before the answer did.");
}

async function* serverSentEvents(stream, signal) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  try {
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch (error) {
        if (signal?.aborted) throw error;
        throw new ApiError("The connection to the server broke.");
      }
      if (piece.done) return;
      buffer += decoder.decode(piece.value, { stream: true }).replaceAll("\r\n", "\n");
      const parts = buffer.split("\n\n");
      buffer = parts.pop();
      for (const part of parts) {
        const found = { event: "message", data: [] };
        for (const line of part.split("\n")) {
          // Lines that begin with a colon keep the connection alive and mean nothing.
          const [, name, value] = line.match(/^(event|data): ?(.*)$/) ?? [];
          if (name === "event") found.event = value;
          if (name === "data") found.data.push(value);
        }
        if (found.data.length) yield { event: found.event, data: found.data.join("\n") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
