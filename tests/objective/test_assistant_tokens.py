"""Loss on the assistant's tokens: against transformers' own, and packed against unpacked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.chat_factory import chat_encoder, conversations, encoded, rows_of, write_parent
from raymill.config import load
from raymill.data.chat.pack import pack
from raymill.data.messages.encode import EncodedChat
from raymill.data.store.hashing import hash_key
from raymill.data.store.rows import Rows
from raymill.model.build import build_model
from raymill.model.parent import add_embedding_noise, load_parent
from raymill.objective.language_modeling import AssistantTokens

CPU = torch.device("cpu")
NEW_IDS, VOCAB = (257, 258), 259


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parent(tmp_path_factory.mktemp("parent"))


@pytest.fixture
def model(parent: Path) -> Any:
    return load_parent(parent, VOCAB, NEW_IDS, "sdpa", 7)


@pytest.fixture(scope="module")
def chats(parent: Path) -> list[EncodedChat]:
    return encoded(chat_encoder(parent), conversations(24))


def total(model: Any, rows: Rows) -> torch.Tensor:
    return AssistantTokens(model.get_output_embeddings()).losses(model, rows, CPU).sum()


def gradient(model: Any, rows: Rows) -> np.ndarray:
    model.zero_grad()
    total(model, rows).backward()
    return np.concatenate([p.grad.flatten().numpy() for p in model.parameters()])


def one_per_row(chats: list[EncodedChat], count: int) -> Rows:
    width = max(len(chat.ids) for chat in chats)
    return rows_of(chats, [[index] for index in range(count)], width)


def test_the_sum_is_transformers_mean_times_its_count(model: Any, chats: list[EncodedChat]) -> None:
    rows = one_per_row(chats, 6)
    expected, count = 0.0, 0
    for chat in chats[:6]:
        ids = torch.tensor([chat.ids.astype(np.int64).tolist()])
        labels = ids.clone()
        labels[0, ~torch.from_numpy(chat.learned)] = -100
        expected += model(input_ids=ids, labels=labels).loss.item() * int(chat.learned.sum())
        count += int(chat.learned.sum())
    assert total(model, rows).item() == pytest.approx(expected, rel=1e-5)
    assert AssistantTokens(model.get_output_embeddings()).weight(rows) == count


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_packing_changes_no_gradient(family: str, chats: list[EncodedChat]) -> None:
    arch = load("pretrain", ["experiment=tiny"]).arch
    kv_heads = 4 if family == "gpt2" else 2
    arch = replace(arch, family=family, kv_heads=kv_heads, max_positions=1024)
    model = build_model(arch, VOCAB, 0, 5)
    sizes = np.array([len(chat.ids) for chat in chats])
    groups = pack(sizes, 800, 4096, hash_key(1))
    assert max(map(len, groups)) > 2, "rows must hold several conversations"
    packed = gradient(model, rows_of(chats, groups, 800))
    alone = gradient(model, one_per_row(chats, len(chats)))
    assert np.linalg.norm(packed - alone) / np.linalg.norm(alone) < 1e-5


def test_a_conversation_does_not_see_its_neighbours(model: Any, chats: list[EncodedChat]) -> None:
    objective = AssistantTokens(model.get_output_embeddings())
    lone = objective.losses(model, rows_of(chats, [[0]], 900), CPU).item()
    for other in (1, 2):
        after = objective.losses(model, rows_of(chats, [[other, 0]], 900), CPU).item()
        own = objective.losses(model, rows_of(chats, [[other]], 900), CPU).item()
        assert after - own == pytest.approx(lone, rel=1e-4)


def test_weights_scale_their_own_conversation(model: Any, chats: list[EncodedChat]) -> None:
    rows = rows_of(chats, [[0, 1], [2, 3]], 900)
    assert rows.weight is not None and rows.segment is not None
    doubled = replace(rows, weight=rows.weight * np.where(rows.segment == 1, 2, 1).astype("f4"))
    objective = AssistantTokens(model.get_output_embeddings())
    once, twice = (objective.losses(model, r, CPU) for r in (rows, doubled))
    second = replace(rows, weight=rows.weight * (rows.segment == 1))
    extra = objective.losses(model, second, CPU)
    assert torch.allclose(twice - once, extra, rtol=1e-4)
    assert objective.weight(doubled) > objective.weight(rows)


def test_splitting_and_order_change_nothing(model: Any, chats: list[EncodedChat]) -> None:
    rows = one_per_row(chats, 8)
    whole = total(model, rows).item()
    parts = sum(total(model, rows.part(i, i + 2)).item() for i in range(0, 8, 2))
    assert parts == pytest.approx(whole, rel=1e-5)
    assert total(model, rows.take(np.arange(8)[::-1])).item() == pytest.approx(whole, rel=1e-5)


def test_no_rows_are_a_forward_pass_with_zero_loss(model: Any) -> None:
    none = Rows.empty(65, "uint16", "chat")
    objective = AssistantTokens(model.get_output_embeddings())
    losses = objective.losses(model, none, CPU)
    assert losses.tolist() == [0.0]
    assert objective.weight(none) == 0.0
    losses.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_noise_only_in_training_and_repeatable(model: Any, chats: list[EncodedChat]) -> None:
    rows = one_per_row(chats, 4)
    quiet = total(model.eval(), rows).item()
    add_embedding_noise(model, 5.0)
    assert total(model.eval(), rows).item() == quiet
    model.train()
    torch.manual_seed(1)
    noisy = total(model, rows).item()
    torch.manual_seed(1)
    assert total(model, rows).item() == noisy != quiet


def test_noise_does_not_shrink_where_rows_become_one(model: Any) -> None:
    embed = model.get_input_embeddings()
    clean_THs = [embed(torch.ones(1, length, dtype=torch.long)) for length in (8, 32)]
    add_embedding_noise(model, 5.0, row_length=8)
    model.train()
    for clean_TH, length in zip(clean_THs, (8, 32), strict=True):
        noise_TH = embed(torch.ones(1, length, dtype=torch.long)) - clean_TH
        most = 5.0 / (8 * noise_TH.shape[2]) ** 0.5
        assert 0.95 * most < noise_TH.abs().max().item() <= most
