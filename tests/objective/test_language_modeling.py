"""The loss against transformers' own, and documents that don't see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raymill.config import load
from raymill.data.store.rows import Rows
from raymill.model.build import build_model
from raymill.objective.language_modeling import LanguageModeling

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model(load("pretrain", ["experiment=tiny"]).arch, 64, 0, 1).eval()


def rows(*lengths: int, width: int = 17) -> Rows:
    tokens = np.random.default_rng(0).integers(1, 64, (len(lengths), width)).astype(np.uint16)
    length = np.array(lengths, dtype=np.int32)
    tokens[np.arange(width) >= length[:, None]] = 0
    return Rows(tokens, length)


def test_the_sum_is_transformers_mean_times_its_count(model: torch.nn.Module) -> None:
    objective = LanguageModeling(0)
    full = rows(17, 17, 17)
    tokens = torch.from_numpy(full.tokens.astype(np.int64))
    reference = model(input_ids=tokens, labels=tokens).loss * 48
    # transformers feeds the last token too; it predicts nothing.
    assert objective.losses(model, full, CPU).sum().item() == pytest.approx(
        reference.item(), rel=1e-6
    )
    assert objective.weight(full) == 48


def test_padding_and_splitting_change_nothing(model: torch.nn.Module) -> None:
    objective = LanguageModeling(0)
    mixed = rows(17, 9, 2, 13)
    whole = objective.losses(model, mixed, CPU).sum().item()
    alone = 0.0
    for index, length in enumerate(mixed.length.tolist()):
        part = Rows(mixed.tokens[index : index + 1, :length], mixed.length[index : index + 1])
        alone += objective.losses(model, part, CPU).sum().item()
    assert whole == pytest.approx(alone, rel=1e-5)
    assert objective.weight(mixed) == 16 + 8 + 1 + 12


def test_document_mask_makes_documents_independent(model: torch.nn.Module) -> None:
    one, two = [0, 11, 12, 13], [0, 21, 22, 23, 24]
    packed = Rows(np.array([[*one, *two]], dtype=np.uint16), np.array([9], dtype=np.int32))
    swapped = Rows(np.array([[0, 31, 32, 33, *two]], dtype=np.uint16), packed.length)

    def logits(rows_: Rows, mask: bool) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def forward(**arguments: torch.Tensor) -> object:
            output = model(**arguments)
            seen.append(output.logits)
            return output

        with torch.no_grad():
            LanguageModeling(0, document_mask=mask).losses(forward, rows_, CPU)
        return seen[0][0, 4:]

    assert torch.allclose(logits(packed, True), logits(swapped, True), atol=1e-6)
    assert not torch.allclose(logits(packed, False), logits(swapped, False), atol=1e-3)
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([two[:-1]])).logits[0]
    assert torch.allclose(logits(packed, True), alone, atol=1e-5)


def test_an_empty_batch_is_a_forward_pass_that_adds_nothing(model: torch.nn.Module) -> None:
    """A rank without rows must still take part in gathering weights under ZeRO-3."""
    empty = Rows(np.empty((0, 17), dtype=np.uint16), np.empty(0, dtype=np.int32))
    assert LanguageModeling(0).losses(model, empty, CPU).tolist() == [0.0]
    assert LanguageModeling(0).weight(empty) == 0
