// Requests to the server. A decision is sent until it arrives; its id keeps a retry from counting twice.

const LONGEST_WAIT_MS = 15000;

export class Refused extends Error {}

export class Closed extends Error {}

export function freshId() {
  // randomUUID needs a secure context, and plain http from another machine is none.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export async function about() {
  return answer(await fetch("/api/about"));
}

export async function post(path, body, onTrouble = () => {}) {
  const sent = JSON.stringify(body);
  for (let wait = 500; ; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
    try {
      const response = await fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: sent });
      if (response.status < 500) {
        onTrouble(null);
        return answer(response);
      }
      onTrouble(`The server has a problem (${response.status}). Retrying …`);
    } catch (error) {
      if (error instanceof Refused || error instanceof Closed) throw error;
      onTrouble("The server can't be reached. Retrying; your decision is not lost …");
    }
    await pause(wait);
  }
}

export function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

async function answer(response) {
  if (response.status === 401) throw new Closed("The server was restarted: open the address that it printed.");
  const result = await response.json();
  if (!response.ok) throw new Refused(result.error ?? `refused (${response.status})`);
  return result;
}
