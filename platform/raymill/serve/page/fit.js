// Keep a prompt within the model's positions, as jobs/chat.py does: the oldest turns are dropped, and the page
// shows which. Positions for the answer stay free, but at most half of them, or every turn would be dropped.

// Return the turns to send, how many messages (questions and answers) were left out, and the counts.
// `count`: counts a list of messages, or returns null where the server can't; `start`: pairs that the answer
// before left out already, which stay forgotten.
export async function fit(system, turns, maxTokens, count, start = 0) {
  const prefix = system ? [{ role: "system", content: system }] : [];
  const prompt = (dropped) => [...prefix, ...turns.slice(2 * dropped).map(({ role, content }) => ({ role, content }))];
  const last = Math.floor((turns.length - 1) / 2);
  start = Math.min(start, last);
  const seen = new Map();
  const counted = async (dropped) => {
    if (!seen.has(dropped)) seen.set(dropped, await count(prompt(dropped)));
    return seen.get(dropped);
  };
  const first = await counted(start);
  if (!first?.positions) return { messages: prompt(start), dropped: start, positions: null, used: first?.count ?? null };
  const reserved = Math.min(maxTokens, Math.floor(first.positions / 2));
  // Every turn less makes the prompt shorter, so the smallest number of dropped turns is found by halving.
  let low = start;
  let high = last;
  if (first.count + reserved > first.positions) {
    low = Math.min(start + 1, last);
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if ((await counted(middle)).count + reserved <= first.positions) high = middle;
      else low = middle + 1;
    }
  }
  const { count: used, positions } = await counted(low);
  if (used >= positions) {
    throw new Error(`The message is too long: with the template's tokens it has ${number(used)} tokens, and the model has ${number(positions)} positions for it and the answer.`);
  }
  return { messages: prompt(low), dropped: low, positions, used };
}

export function forgotten(dropped, positions) {
  const what = dropped === 1 ? "the oldest question and its answer" : `the ${dropped} oldest questions and their answers`;
  return `The model has ${number(positions)} positions: it no longer sees ${what}.`;
}

export const number = (value) => value.toLocaleString("en-US");
