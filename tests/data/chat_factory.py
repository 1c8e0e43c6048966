"""Small parents and conversations, for tests of whatever learns from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.prepared_factory import _write_tokenizer
from raymill.data.messages.conversation import Conversation, read_conversation
from raymill.data.messages.encode import ChatEncoder, EncodedChat
from raymill.data.messages.template import ChatTemplate
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.data.store.rows import Rows

SENTENCES = (
    "The red mill grinds wheat.", "Rye comes first.\n\nThen oats — and barley.", "Nobody knows.",
    "def f(x):\n    return x", "¿Cuántos sacos?", "3 sacks before day 7", "  spaced  ", "ok",
)  # fmt: skip


def write_parent(folder: Path, vocab_size: int = 257, **shape: Any) -> Path:
    """A tiny random Llama with a byte-level tokenizer and no chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    _write_tokenizer(folder, vocab_size)
    torch.manual_seed(3)
    config: dict[str, Any] = {
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **(config | shape)))
    model.save_pretrained(folder)
    return folder


def chat_encoder(parent: Path) -> ChatEncoder:
    """ChatML over the parent's tokenizer."""
    made = chat_tokenizer(parent, "chatml", ())
    return ChatEncoder(made.tokenizer, ChatTemplate(made.template, {}))


def conversations(count: int, seed: int = 0) -> list[Conversation]:
    """Conversations of one to three exchanges, some with a system prompt."""
    random = np.random.default_rng(seed)

    def say() -> str:
        return " ".join(
            SENTENCES[i] for i in random.integers(0, len(SENTENCES), 1 + random.integers(3))
        )

    found = []
    for _ in range(count):
        messages = [{"role": "system", "content": say()}] if random.random() < 0.3 else []
        for _ in range(int(random.integers(1, 4))):
            messages += [
                {"role": "user", "content": say()},
                {"role": "assistant", "content": say()},
            ]
        conversation = read_conversation({"messages": messages})
        assert isinstance(conversation, Conversation)
        found.append(conversation)
    return found


def encoded(encoder: ChatEncoder, conversations: Sequence[Conversation]) -> list[EncodedChat]:
    """All of them, none refused."""
    chats = encoder.encode(conversations)
    assert all(isinstance(chat, EncodedChat) for chat in chats)
    return chats  # type: ignore[return-value]


def rows_of(chats: Sequence[EncodedChat], groups: Sequence[Sequence[int]], width: int) -> Rows:
    """One row for each group of conversations."""
    rows = Rows.empty(width, "uint16", "chat").columns()
    columns = {n: np.zeros((len(groups), *c.shape[1:]), c.dtype) for n, c in rows.items()}
    for row, group in enumerate(groups):
        start = 0
        for place, index in enumerate(group):
            chat = chats[index]
            part = slice(start, start + len(chat.ids))
            columns["tokens"][row, part] = chat.ids
            columns["weight"][row, part] = chat.learned
            columns["segment"][row, part] = place
            start += len(chat.ids)
        columns["length"][row] = start
    return Rows.from_columns(columns)


def write_jsonl(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
