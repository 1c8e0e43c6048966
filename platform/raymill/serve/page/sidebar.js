// The list of conversations.

import { button, make } from "./build.js";

const DAY_MS = 86400000;

export function when(time, now = Date.now()) {
  const day = (moment) => Math.floor((moment - new Date(now).getTimezoneOffset() * 60000) / DAY_MS);
  const days = day(now) - day(time);
  if (days < 1) return "Today";
  if (days < 2) return "Yesterday";
  return days < 7 ? "Last week" : new Date(time).toLocaleDateString(undefined, { year: "numeric", month: "long" });
}

export class Sidebar {
  // `open(id)` and `manage(id)` are called for a conversation.
  constructor(element, { open, manage }) {
    Object.assign(this, { element, open, manage });
  }

  show(conversations, current) {
    const parts = [];
    let heading = null;
    for (const { id, title, updated } of conversations) {
      const group = when(updated);
      if (group !== heading) parts.push(make("li", { class: "day", role: "presentation", text: (heading = group) }));
      const name = title || "Conversation";
      const item = button(name, null, () => this.open(id), { class: "quiet title", "aria-current": id === current ? "true" : null, title: name });
      const more = button("⋯", null, () => this.manage(id), { class: "quiet more", "aria-label": `Rename, export or delete ${name}` });
      parts.push(make("li", { "data-id": id }, item, more));
    }
    if (!parts.length) parts.push(make("li", { class: "hint", text: "Conversations stay in this browser." }));
    const focused = this.element.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
    this.element.replaceChildren(...parts);
    if (focused) this.element.querySelector(`[data-id="${CSS.escape(focused)}"] .title`)?.focus();
  }
}
