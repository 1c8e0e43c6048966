// The lineage card: a version, what it was trained from and on, and with which code, back to the first stage.

import { make } from "./build.js";
import { copyButton } from "./code.js";
import { number } from "./fit.js";

const short = (digest) => (digest.length > 14 ? `${digest.slice(0, 12)}…` : digest);

const digest = (value) => value && make("span", { class: "digest" }, make("code", { text: short(value), title: value }), copyButton(() => value));

function fact(name, ...values) {
  const given = values.flat().filter((value) => value != null && value !== "");
  return given.length ? [make("dt", { text: name }), make("dd", {}, ...given)] : [];
}

function stage(step, at, all) {
  const { version, parent } = step;
  const last = at === all - 1;
  const rows = [
    ...fact("Weights", digest(step.fingerprint)),
    ...fact("Checkpoint", step.checkpoint ?? (step.step != null ? `step ${number(step.step)}` : null)),
    ...fact("Tokens", step.tokens != null ? number(step.tokens) : null),
    ...fact("Data", (step.data_digests ?? []).map(digest)),
    ...fact("Configuration", digest(step.config_digest)),
    ...fact("Code", digest(step.code_commit)),
    ...fact("Parent", last && parent ? `${parent}, which can't be found any more` : null),
  ];
  const what = at === 0 ? "answers here" : last && !parent ? "the first stage" : "parent";
  const facts = rows.length ? make("dl", {}, ...rows) : make("p", { class: "hint", text: "Nothing is recorded about its origin." });
  return make("li", {}, make("h3", {}, version, " ", make("span", { class: "tag", text: what })), facts);
}

// `model`: an entry of /v1/models.
export function lineage({ version, fingerprint, lineage: stages = [] }) {
  const [own = { version }, ...others] = stages;
  const chain = [{ fingerprint, ...own }, ...others];
  return make("ol", { class: "lineage" }, ...chain.map((step, at) => stage(step, at, chain.length)));
}
