// The conversation that is open: questions, answers, branches and votes. What is shown is told by `changed` and
// `shown`; everything is stored as it happens.

import { Answering, ABANDONED_MS, fitted, randomSeed } from "./answering.js";
import { sendEdit, sendVote, withdraw } from "./feedback.js";
import { freshId, Tree } from "./tree.js";

const TITLE_CHARACTERS = 60;

export class Session {
  // `page`: what the page does: shown(), changed(message), ended(answers), listed(), say(text, wrong), trouble(text),
  // name().
  constructor(storage, page) {
    Object.assign(this, { storage, page });
    this.probabilities = false;
    this.votes = false;
    // Conversations in which an answer is still being written stay here while another one is shown.
    this.kept = new Map();
    // The conversation of each answer that this window has written; deleted conversations aren't stored again.
    this.owners = new Map();
    this.deleted = new Set();
    this.answering = new Answering({
      changed: (message) => this.owners.get(message.id) === this.conversation.id && page.changed(message),
      save: (message) => this.save(this.owners.get(message.id), [message]),
    });
  }

  start(settings) {
    this.conversation = { id: freshId(), title: "", created: Date.now(), settings };
    this.tree = new Tree();
    this.page.shown();
  }

  async open(id) {
    const kept = this.kept.get(id);
    if (kept) Object.assign(this, kept);
    else {
      const conversation = await this.storage.conversation(id);
      if (!conversation) return false;
      this.conversation = conversation;
      this.tree = new Tree(await this.storage.messages(id), conversation.choices);
    }
    this.page.shown();
    return true;
  }

  // Take over what another window stored.
  async refresh(id) {
    if (id !== this.conversation.id) return;
    const { tree } = this;
    // What this window writes, it knows better than the storage.
    for (const message of await this.storage.messages(id)) if (!this.owners.has(message.id)) tree.put(message);
    if (tree === this.tree) this.page.shown({ here: false });
  }

  forget(id) {
    this.deleted.add(id);
    for (const [answer, conversation] of this.owners) if (conversation === id) this.answering.stop(answer);
  }

  save(id, messages) {
    return this.store(id, () => this.storage.saveMessages(id, messages));
  }

  async saveConversation(conversation = this.conversation, tree = this.tree) {
    const { id, title, created, settings } = conversation;
    await this.store(id, () => this.storage.saveConversation(id, { title, created, settings, updated: Date.now(), choices: { ...tree.choices } }));
    this.page.listed();
  }

  async store(id, work) {
    if (this.deleted.has(id)) return;
    try {
      await work();
    } catch (error) {
      this.page.trouble(error.message);
    }
  }

  get stored() {
    return this.tree.messages.size > 0;
  }

  isRunning({ id, role, finish, beat }) {
    return this.answering.has(id) || (role === "assistant" && finish === null && Date.now() - beat < ABANDONED_MS);
  }

  get running() {
    return [...this.answering.running.keys()].filter((id) => this.owners.get(id) === this.conversation.id);
  }

  stop() {
    for (const id of this.running) this.answering.stop(id);
  }

  ask(text) {
    const last = this.tree.path().at(-1);
    const pair = last && this.tree.get(last.parent);
    if (pair?.pair) this.settle(pair);
    const question = this.tree.add({ parent: last?.id ?? "", role: "user", content: text });
    this.conversation.title ||= text.trim().split("\n")[0].slice(0, TITLE_CHARACTERS);
    return this.answer(question);
  }

  editQuestion(id, text) {
    const question = this.tree.add({ parent: this.tree.get(id).parent, role: "user", content: text });
    return this.answer(question);
  }

  regenerate(id) {
    const answer = this.tree.get(id);
    return this.answer(this.tree.get(answer.parent), answer.edited ? null : answer.model);
  }

  // Answer again in place, unless the conversation went on from here.
  retry(id) {
    const answer = this.tree.get(id);
    if (this.tree.siblingsUnder(id).length) return this.regenerate(id);
    const question = this.tree.get(answer.parent);
    Object.assign(answer, { content: "", thoughts: null, tokens: null, usage: null, error: null, first: null, version: null, ...this.promptFields() });
    return this.fill(question, [answer]);
  }

  // Answer a question once, or twice side by side.
  answer(question, model = null) {
    const { settings } = this.conversation;
    const compare = settings.compare && model === null;
    const models = compare ? [settings.model, settings.other ?? settings.model] : [model ?? settings.model];
    // Chance decides who stands left, so that a liking for one side averages out.
    if (crypto.getRandomValues(new Uint8Array(1))[0] & 1) models.reverse();
    const answers = models.map((one) => this.tree.add({ parent: question.id, role: "assistant", model: one, seed: this.seed(question), finish: null, ...this.promptFields() }));
    if (compare) {
      Object.assign(question, { pair: answers.map((answer) => answer.id), vote: null, settled: false });
      this.tree.choose(answers[0].id);
    } else if (question.pair) question.settled = true;
    return this.fill(question, answers);
  }

  // A fixed seed is that of a question's first answer; each further one adds 1, or it would be the same again.
  seed(question) {
    const { seed } = this.conversation.settings;
    return seed == null ? randomSeed() : seed + this.tree.siblingsUnder(question.id).length;
  }

  promptFields() {
    return { system: this.conversation.settings.system || null, asked: this.probabilities };
  }

  async fill(question, answers) {
    const { conversation, tree } = this;
    const settings = { ...conversation.settings };
    const path = tree.above(question.id);
    this.kept.set(conversation.id, { conversation, tree });
    for (const answer of answers) {
      Object.assign(answer, { beat: Date.now() });
      this.owners.set(answer.id, conversation.id);
    }
    const fits = answers.map((answer) => fitted(answer.model, path, settings));
    // Both answers to compare get the same prompt, that of the model with less room.
    const prompt = (side) => async (signal) => {
      const all = await Promise.all(fits);
      const most = Math.max(...all.map(({ dropped }) => dropped));
      return all[side].dropped === most ? all[side] : fitted(answers[side].model, path, settings, signal, most);
    };
    const filled = answers.map((answer, side) => this.answering.fill(answer, prompt(side), settings, answer.asked));
    this.page.shown({ toEnd: true });
    this.saveConversation(conversation, tree);
    this.save(conversation.id, [question, ...answers]);
    await Promise.all(filled);
    const busy = [...tree.messages.keys()].some((id) => this.answering.has(id));
    if (!busy) this.kept.delete(conversation.id);
    // Kept even if it is shown no more: `open` reads it from the storage.
    if (conversation === this.conversation) this.page.ended(answers);
  }

  turn(id, by) {
    const siblings = this.tree.siblings(id);
    const next = siblings[siblings.indexOf(id) + by];
    if (next === undefined) return;
    const question = this.tree.get(this.tree.get(id).parent);
    if (question?.pair) this.settle(question);
    this.tree.choose(next);
    this.saveConversation();
    this.page.shown({ focus: next });
  }

  settle(question) {
    question.settled = true;
    this.save(this.conversation.id, [question]);
  }

  continueWith(questionId, id) {
    this.tree.choose(id);
    this.saveConversation();
    this.page.shown();
    this.page.say(`The conversation goes on from ${"AB"[this.tree.get(questionId).pair.indexOf(id)]}.`);
  }

  async vote(questionId, choice) {
    const question = this.tree.get(questionId);
    const answers = question.pair.map((id) => this.tree.get(id));
    await this.withName(async (annotator) => {
      question.voted = await sendVote({ annotator, answers, path: this.tree.above(questionId), choice });
      question.vote = choice.vote;
      const best = "ab".indexOf(choice.vote);
      if (best >= 0) this.tree.choose(question.pair[best]);
      this.page.say(`Your vote is stored: ${choice.label}.`);
    });
    this.save(this.conversation.id, [question]);
    this.saveConversation();
    this.page.shown();
  }

  async takeBack(questionId) {
    const question = this.tree.get(questionId);
    await this.attempt(async () => {
      await withdraw(question.voted);
      question.vote = null;
      this.page.say("Your vote was taken back.");
    });
    this.save(this.conversation.id, [question]);
    this.page.shown();
  }

  // A better answer becomes a branch, and, where the server takes votes, a preference over the model's.
  async editAnswer(id, text) {
    const given = this.tree.get(id);
    const original = given.edited ? this.tree.get(given.from) : given;
    const edited = this.tree.add({ parent: given.parent, role: "assistant", content: text, finish: "stop", edited: true, from: original.id, model: original.model, dropped: original.dropped, positions: original.positions, system: original.system });
    this.save(this.conversation.id, [edited]);
    this.saveConversation();
    this.page.shown({ focus: edited.id });
    if (!this.votes || !["stop", "length"].includes(original.finish)) return;
    await this.withName(async (annotator) => {
      if (original.corrected) await withdraw(original.corrected);
      original.corrected = await sendEdit({ annotator, answer: original, path: this.tree.above(original.parent), text });
      this.page.say("Your version is stored as better than the model's.");
    });
    this.save(this.conversation.id, [original]);
  }

  async withName(work) {
    const annotator = await this.page.name();
    if (annotator !== null) await this.attempt(() => work(annotator));
  }

  async attempt(work) {
    try {
      await work();
    } catch (error) {
      this.page.say(error.message, true);
    }
  }
}
