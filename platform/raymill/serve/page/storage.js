// Conversations in the browser's own database. Each message is a record, so that two windows which answer in the
// same conversation add branches to it and lose nothing. Windows tell each other what changed.

const NAME = "raymill-chat";

export async function openStorage() {
  try {
    return new Storage(await opened());
  } catch {
    // Some browsers refuse it in private windows.
    return new Storage(null);
  }
}

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: ["conversation", "id"] });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked"));
  });
}

const inConversation = (id) => IDBKeyRange.bound([id], [id, []]);

class Storage {
  constructor(database) {
    this.database = database;
    // Without a database, conversations last as long as the window.
    this.memory = { conversations: new Map(), messages: new Map() };
    this.channel = "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;
  }

  get lasting() {
    return this.database !== null;
  }

  // Call `listener` with { conversation, removed } for every change in another window.
  onChange(listener) {
    if (this.channel) this.channel.onmessage = ({ data }) => listener(data);
  }

  tell(conversation, removed = false) {
    this.channel?.postMessage({ conversation, removed });
  }

  async conversations() {
    const found = this.database ? await this.run("conversations", "readonly", (store) => store.getAll()) : [...this.memory.conversations.values()];
    return found.sort((a, b) => b.updated - a.updated);
  }

  conversation(id) {
    return this.database ? this.run("conversations", "readonly", (store) => store.get(id)) : this.memory.conversations.get(id);
  }

  messages(id) {
    if (this.database) return this.run("messages", "readonly", (store) => store.getAll(inConversation(id)));
    return [...this.memory.messages.values()].filter((message) => message.conversation === id);
  }

  // Store some fields; the others stay as another window may have changed them.
  async saveConversation(id, changes) {
    if (this.database) {
      await this.run("conversations", "readwrite", (store) => {
        const request = store.get(id);
        request.onsuccess = () => store.put({ id, ...request.result, ...changes });
        return request;
      });
    } else this.memory.conversations.set(id, { id, ...this.memory.conversations.get(id), ...changes });
    this.tell(id);
  }

  async saveMessages(id, messages) {
    const records = messages.map((message) => ({ ...message, conversation: id }));
    if (this.database) await this.run("messages", "readwrite", (store) => records.map((record) => store.put(record)).at(-1));
    else for (const record of records) this.memory.messages.set(record.id, record);
    this.tell(id);
  }

  async remove(id) {
    if (this.database) {
      await this.run("messages", "readwrite", (store) => store.delete(inConversation(id)));
      await this.run("conversations", "readwrite", (store) => store.delete(id));
    } else {
      this.memory.conversations.delete(id);
      for (const message of await this.messages(id)) this.memory.messages.delete(message.id);
    }
    this.tell(id, true);
  }

  // Do some work in a transaction; return its last request's result once everything is stored.
  run(name, mode, work) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(name, mode);
      const request = work(transaction.objectStore(name));
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onabort = transaction.onerror = () => reject(storageError(transaction.error));
    });
  }
}

function storageError(error) {
  const full = error?.name === "QuotaExceededError";
  return new Error(full ? "The browser has no room left for conversations: export some and delete them." : `The browser can't store this conversation (${error?.message ?? "unknown reason"}).`);
}

// Small settings of this browser.
export const remembered = {
  read(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(`raymill-${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  write(name, value) {
    try {
      localStorage.setItem(`raymill-${name}`, JSON.stringify(value));
    } catch {
      // It only makes a later visit more convenient.
    }
  },
};
