"""A parent made ready: the same on every rank and at every start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.alignment_probe import VOCAB, write_parent
from raymill.model.parent import load_parent, load_scalar


@pytest.mark.parametrize("new_ids", [[], [VOCAB, VOCAB + 1]])
def test_rows_of_new_tokens_are_drawn_from_the_seed(tmp_path: Path, new_ids: list[int]) -> None:
    """Also where the parent's tokenizer has tokens that its model has no rows for."""
    folder = write_parent(tmp_path, hidden=32)
    found = []
    for state in (1, 2):
        torch.manual_seed(state)  # whatever else drew random numbers before
        model = load_parent(folder, VOCAB + 2, new_ids, "sdpa", seed=7)
        found.append(model.get_input_embeddings().weight[VOCAB:].detach())
    assert torch.equal(*found)
    assert not torch.equal(found[0][0], found[0][1])
    other = load_parent(folder, VOCAB + 2, new_ids, "sdpa", seed=8)
    assert not torch.equal(other.get_input_embeddings().weight[VOCAB:], found[0])


def test_a_new_scalar_head_is_drawn_from_the_seed(tmp_path: Path) -> None:
    folder = write_parent(tmp_path, hidden=32)
    heads = []
    for state, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(state)
        model, had_head = load_scalar(folder, VOCAB, [], "sdpa", seed, pad_id=0)
        assert not had_head
        heads.append(model.score.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    model.save_pretrained(tmp_path / "saved")
    again, has_head = load_scalar(tmp_path / "saved", VOCAB, [], "sdpa", 9, pad_id=0)
    assert has_head
    assert torch.equal(again.score.weight, heads[2])
