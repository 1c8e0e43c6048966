"""Rows cut into sequences: what a token sees is its own sequence, whatever the kernel, the other rows and
the job. The reference is each sequence's own pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from objective.flash_stand_in import flash_attention
from objective.test_pairs import classifier, rows_of, some_pairs
from raymill.data.store.rows import Rows
from raymill.objective.forward import Sequences
from raymill.objective.language_modeling import AssistantTokens, LanguageModeling
from raymill.objective.objective import Objective
from raymill.objective.pairs import PreferredAnswers, RewardPairs
from raymill.rl.objective import Critic, PolicyGradient
from raymill.schema.sections import AlgorithmConfig
from rl.rollout.tiny import tiny_model
from rl.test_objective import sampled, with_columns
from sections import plain

CPU = torch.device("cpu")
END = 0
TEXTS = [[11, 12, 13], [21, 22, 23, 24, 25], [31], [41, 42, 43, 44]]
PAIRS = rows_of(some_pairs())
KERNELS: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "sdpa": nullcontext,
    "flash_attention_2": flash_attention,
}
FAMILIES = ("llama", "qwen3", "gpt2")


def test_rows_are_cut_where_sequences_open() -> None:
    tokens = torch.tensor([[END, 5, 6, END, 7, 8, 9], [3, 4, END, END, 1, 2, 3]])
    found = Sequences.from_tokens(tokens, tokens == END)
    assert found.cu_seqlens.tolist() == [0, 3, 7, 9, 10, 14] and found.packed
    assert found.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3], [0, 1, 0, 0, 1, 2, 3]]
    flat = found.arguments(flat=True)
    assert flat["max_length_q"] == 4 and flat["input_ids"].shape == (1, 14)  # type: ignore[union-attr]
    whole = Sequences.from_tokens(tokens)
    assert whole.cu_seqlens.tolist() == [0, 7, 14] and not whole.packed
    assert list(whole.arguments(flat=False)) == ["input_ids"], "rows alone need no mask"


def documents(*groups: list[list[int]], width: int = 24) -> Rows:
    """A row each of documents, which an end of text opens."""
    tokens = np.zeros((len(groups), width), dtype=np.uint16)
    length = np.zeros(len(groups), dtype=np.int32)
    for row, group in enumerate(groups):
        ids = [token for document in group for token in (END, *document)]
        tokens[row, : len(ids)], length[row] = ids, len(ids)
    return Rows(tokens, length)


def conversations(*groups: list[list[int]], width: int = 24) -> Rows:
    """A row each of conversations; all but the first token of each is learned from."""
    tokens = np.zeros((len(groups), width), dtype=np.uint16)
    weight = np.zeros((len(groups), width), dtype=np.float32)
    segment = np.zeros((len(groups), width), dtype=np.uint16)
    length = np.zeros(len(groups), dtype=np.int32)
    for row, group in enumerate(groups):
        for number, ids in enumerate(group):
            part = slice(length[row], length[row] + len(ids))
            tokens[row, part], segment[row, part] = ids, number
            weight[row, part.start + 1 : part.stop] = 1.0
            length[row] = part.stop
    return Rows(tokens, length, weight=weight, segment=segment)


def lone_text(model: Any, ids: list[int]) -> torch.Tensor:
    """Nats of all tokens after the first, of transformers' own pass of this sequence alone."""
    tokens = torch.tensor([ids])
    return model(input_ids=tokens, labels=tokens).loss * (len(ids) - 1)


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_packed_documents_do_not_see_each_other(kernel: str, family: str) -> None:
    """Several rows at once, as in pretraining. The end that opens a document is predicted by the one before."""
    model = tiny_model(family).double()
    rows = documents([TEXTS[0], TEXTS[1]], [TEXTS[2], TEXTS[3], TEXTS[0]])
    with KERNELS[kernel](model):
        losses_B = LanguageModeling(END, document_mask=True).losses(model, rows, CPU)
    found = gradient(model, losses_B.sum())
    expected = []
    for group in ((0, 1), (2, 3, 0)):
        own = [
            lone_text(model, [END, *TEXTS[n], *([END] if n != group[-1] else [])]) for n in group
        ]
        expected.append(torch.stack(own).sum())
    torch.testing.assert_close(losses_B, torch.stack(expected).float(), rtol=1e-5, atol=1e-5)
    reference = gradient(model, torch.stack(expected).sum())
    assert float((found - reference).norm() / reference.norm()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_packed_conversations_do_not_see_each_other(kernel: str, family: str) -> None:
    model = tiny_model(family).double()
    rows = conversations([TEXTS[0], TEXTS[1]], [TEXTS[3], TEXTS[1], TEXTS[0]])
    objective = AssistantTokens(model.get_output_embeddings())
    with KERNELS[kernel](model):
        losses_B = objective.losses(model, rows, CPU)
    found = gradient(model, losses_B.sum())
    groups = ((0, 1), (3, 1, 0))
    expected = [torch.stack([lone_text(model, TEXTS[n]) for n in group]).sum() for group in groups]
    torch.testing.assert_close(losses_B, torch.stack(expected).float(), rtol=1e-5, atol=1e-5)
    reference = gradient(model, torch.stack(expected).sum())
    assert float((found - reference).norm() / reference.norm()) < 1e-5


def cases() -> dict[str, Callable[[], tuple[Any, Objective, Any]]]:
    """Yield, for every job, a model, its objective, and rows of several lengths."""

    def policy() -> tuple[Any, Objective, Any]:
        model = tiny_model()
        head, algorithm = (
            model.get_output_embeddings(),
            plain(AlgorithmConfig, "grpo", "grpo", kl="loss"),
        )
        return model, PolicyGradient(head, algorithm, 0.7, 8), with_columns(sampled(), model)

    def critic() -> tuple[Any, Objective, Any]:
        model = classifier("llama")
        return model, Critic(model.score, 0.2), with_columns(sampled(), tiny_model())

    def preferred() -> tuple[Any, Objective, Any]:
        model = tiny_model()
        return model, PreferredAnswers(model.get_output_embeddings(), "orpo", 0.3, 0.0, 0.0), PAIRS

    def reward() -> tuple[Any, Objective, Any]:
        model = classifier("llama")
        return model, RewardPairs(model.score, 0.5, 0.05), PAIRS

    def text() -> tuple[Any, Objective, Any]:
        return tiny_model(), LanguageModeling(END), documents(TEXTS[:2], TEXTS[2:], [TEXTS[1]])

    def chat() -> tuple[Any, Objective, Any]:
        model = tiny_model()
        rows = conversations(TEXTS[:2], TEXTS[2:], [TEXTS[1]])
        return model, AssistantTokens(model.get_output_embeddings()), rows

    return {
        "pretrain": text,
        "sft": chat,
        "reward": reward,
        "dpo": preferred,
        "rlhf": policy,
        "critic": critic,
    }


@pytest.mark.parametrize("job", cases())
def test_a_kernel_of_flat_rows_gives_every_jobs_losses_and_gradients(job: str) -> None:
    """Compare gradients with those of masks, and of the rows one by one."""
    model, objective, rows = cases()[job]()
    masked_B = objective.losses(model, rows, CPU)
    expected = gradient(model, masked_B.sum())
    with flash_attention(model):
        flat_B = objective.losses(model, rows, CPU)
        found = gradient(model, flat_B.sum())
        parts = [objective.losses(model, rows.part(n, n + 1), CPU) for n in range(len(rows))]
    torch.testing.assert_close(flat_B, masked_B, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(parts), masked_B, rtol=1e-4, atol=1e-5)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
