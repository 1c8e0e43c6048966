// What can be done with stored conversations: rename, delete, export and import.

import { button, make } from "./build.js";
import { askText } from "./dialogs.js";
import { asJson, asMarkdown, download, fileName, read } from "./transfer.js";
import { Tree } from "./tree.js";

export class Library {
  // `page`: list(), fresh(), open(id), say(text, wrong, action), settings().
  constructor(storage, session, page) {
    Object.assign(this, { storage, session, page });
  }

  async manage(id) {
    const conversation = await this.storage.conversation(id);
    const messages = await this.storage.messages(id);
    const path = () => new Tree(messages, { ...conversation.choices }).path();
    const closing = (work) => () => (document.querySelector("dialog[open]").close(""), work());
    const actions = [
      button("Export as Markdown", null, closing(() => download(fileName(conversation.title, "md"), asMarkdown(conversation, path()), "text/markdown"))),
      button("Export as JSON", null, closing(() => download(fileName(conversation.title, "json"), asJson([{ ...conversation, messages }]), "application/json"))),
      button("Delete", null, closing(() => this.remove(conversation, messages)), { class: "danger" }),
    ];
    const title = await askText({ title: "Conversation", label: "Title", value: conversation.title, save: "Rename", maxlength: 200, extra: make("div", { class: "row stack" }, ...actions) });
    if (title === null) return;
    if (id === this.session.conversation.id) this.session.conversation.title = document.title = title;
    await this.storage.saveConversation(id, { title });
    this.page.list();
  }

  async remove(conversation, messages) {
    const { id } = conversation;
    this.session.forget(id);
    if (id === this.session.conversation.id) this.page.fresh();
    await this.storage.remove(id);
    await this.page.list();
    const back = async () => {
      this.session.deleted.delete(id);
      await this.storage.saveMessages(id, messages);
      await this.storage.saveConversation(id, conversation);
      this.page.open(id);
    };
    this.page.say("The conversation was deleted.", false, button("Undo", null, back));
  }

  async exportAll() {
    const all = await this.storage.conversations();
    const whole = await Promise.all(all.map(async (one) => ({ ...one, messages: await this.storage.messages(one.id) })));
    download("raymill-conversations.json", asJson(whole), "application/json");
  }

  async importFile(file) {
    try {
      const found = await read(file);
      for (const { conversation, messages } of found) {
        const settings = { ...this.page.settings(), ...conversation.settings };
        await this.storage.saveMessages(conversation.id, messages);
        await this.storage.saveConversation(conversation.id, { ...conversation, settings, updated: Date.now() });
      }
      this.page.say(found.length === 1 ? "The conversation was imported." : `${found.length} conversations were imported.`);
      if (found.length) this.page.open(found.at(-1).conversation.id);
    } catch (error) {
      this.page.say(error.message, true);
    }
  }
}
