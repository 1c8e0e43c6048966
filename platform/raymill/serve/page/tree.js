// A conversation is a tree of messages: an edit or another answer is a branch, and nothing is overwritten.

const ROOT = "";

export function freshId() {
  // randomUUID needs a secure context, and plain http from another machine is none.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Tree {
  // `choices`: parent → the child that is shown; without an entry, the latest child.
  constructor(messages = [], choices = {}) {
    this.messages = new Map();
    this.children = new Map();
    this.choices = choices;
    for (const message of messages) this.put(message);
  }

  // Add a message, or take over another window's newer state of it.
  put(message) {
    const known = this.messages.get(message.id);
    if (known) return Object.assign(known, message);
    this.messages.set(message.id, message);
    const siblings = this.siblingsUnder(message.parent);
    siblings.push(message.id);
    siblings.sort((a, b) => this.messages.get(a).time - this.messages.get(b).time || (a < b ? -1 : 1));
    this.children.set(message.parent, siblings);
    return message;
  }

  add(fields) {
    const latest = Math.max(0, ...this.siblingsUnder(fields.parent).map((id) => this.messages.get(id).time));
    const message = this.put({ id: freshId(), time: Math.max(Date.now(), latest + 1), content: "", ...fields });
    this.choose(message.id);
    return message;
  }

  get(id) {
    return this.messages.get(id);
  }

  siblingsUnder(parent) {
    return this.children.get(parent) ?? [];
  }

  siblings(id) {
    return this.siblingsUnder(this.get(id).parent);
  }

  choose(id) {
    this.choices[this.get(id).parent] = id;
  }

  // The branch that is shown, from the first message to the last. It stays chosen: a branch that another window
  // adds to a message in the middle doesn't replace it.
  path() {
    const found = [];
    for (let parent = ROOT; ; ) {
      const siblings = this.siblingsUnder(parent);
      if (!siblings.length) return found;
      const chosen = siblings.includes(this.choices[parent]) ? this.choices[parent] : siblings.at(-1);
      found.push(this.get(chosen));
      this.choices[parent] = chosen;
      parent = chosen;
    }
  }

  // The messages from the first one to this one.
  above(id) {
    const found = [];
    for (let message = this.get(id); message; message = this.get(message.parent)) found.push(message);
    return found.reverse();
  }
}

// Turns that a model is sent. A question without an answer, as after an error, is joined to the next one.
export function turnsOf(path) {
  const turns = [];
  for (const message of path) {
    if (!message.content.trim()) continue;
    const before = turns.at(-1);
    if (before?.role === message.role) {
      before.content += `\n\n${message.content}`;
      before.ids.push(message.id);
    } else turns.push({ role: message.role, content: message.content, ids: [message.id] });
  }
  return turns;
}
