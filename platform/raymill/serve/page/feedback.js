// Votes and better answers, as the server stores them: with the messages that the model saw, the version that
// answered, its seed and its settings.

import { post } from "./api.js";
import { seenBy } from "./answering.js";
import { freshId } from "./tree.js";

const DAY_S = 86400;

function shownAnswer({ content, finish, version, seed, settings }) {
  const { seed: _, ...others } = settings;
  return { text: content, finish, version, seed, settings: others };
}

async function send(annotator, answers, path, judged) {
  const id = freshId();
  const complete = Math.max(...answers.map(({ started, seconds }) => started + 1000 * seconds));
  await post("feedback/vote", {
    id,
    annotator,
    seconds: Math.min(DAY_S, Math.max(0, (Date.now() - complete) / 1000)),
    messages: seenBy(answers[0], path),
    answers: answers.map(shownAnswer),
    text: null,
    ...judged,
  });
  return { id, annotator };
}

// Each returns what takes it back.
export function sendVote({ annotator, answers, path, choice }) {
  return send(annotator, answers, path, { decision: choice.ranks ? "ranked" : "bad", ranks: choice.ranks });
}

export function sendEdit({ annotator, answer, path, text }) {
  return send(annotator, [answer], path, { decision: "ranked", ranks: [1], text });
}

export function withdraw({ id, annotator }) {
  return post("feedback/withdraw", { id, annotator });
}
