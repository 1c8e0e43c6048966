"""A nano model taught some answers before it is aligned: a bare loop, as small as can be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from engine.alignment_probe import ADDED, VOCAB
from raymill.data.messages.conversation import Conversation
from raymill.data.messages.encode import EncodedChat
from raymill.data.messages.folder import load_chat_encoder
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.model.parent import load_parent

ROWS, RATE = 64, 3e-3


def warm_up(
    parent: Path, conversation: Callable[[], tuple[str, str]], *, steps: int, seed: int
) -> None:
    """Teach the model in `parent` what `conversation` draws: (question, answer), and write it back with its
    chat template."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    chat_tokenizer(parent, "auto", ()).save(parent)
    encoder = load_chat_encoder(parent)
    assert encoder is not None
    new = [VOCAB + number for number in range(ADDED)]
    model = load_parent(parent, VOCAB + ADDED, new, "sdpa", seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for step in range(steps):
        drawn = [conversation() for _ in range(ROWS)]
        chats = encoder.encode(
            [
                Conversation(
                    ({"role": "user", "content": asked}, {"role": "assistant", "content": said})
                )
                for asked, said in drawn
            ]
        )
        encoded = [chat for chat in chats if isinstance(chat, EncodedChat)]
        width = max(len(chat.ids) for chat in encoded)
        inputs_BT = torch.zeros(len(encoded), width, dtype=torch.long)
        labels_BT = torch.full((len(encoded), width), -100)
        for row, chat in enumerate(encoded):
            ids = torch.from_numpy(chat.ids.astype("int64"))
            inputs_BT[row, : len(ids)] = ids
            labels_BT[row, : len(ids)] = torch.where(torch.from_numpy(chat.learned), ids, -100)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50)
        optimizer.zero_grad()
        model(input_ids=inputs_BT, labels=labels_BT).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(parent)
    torch.set_num_threads(threads)
