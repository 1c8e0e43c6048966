"""Preparation of a parent: the same on every rank and at every start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.alignment_probe import VOCAB, write_parent
from raymill.errors import DataError
from raymill.generate.load import load_model
from raymill.model.parent import load_parent, load_scalar_model
from raymill.rl.reward.model import RewardModelSpec


@pytest.mark.parametrize("new_ids", [[], [VOCAB, VOCAB + 1]])
def test_rows_of_new_tokens_are_drawn_from_the_seed(tmp_path: Path, new_ids: list[int]) -> None:
    """The parent's tokenizer may have tokens without rows in its model."""
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
        model, had_head = load_scalar_model(folder, VOCAB, [], "sdpa", seed, pad_id=0)
        assert not had_head
        heads.append(model.score.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    model.save_pretrained(tmp_path / "saved")
    again, has_head = load_scalar_model(tmp_path / "saved", VOCAB, [], "sdpa", 9, pad_id=0)
    assert has_head
    assert torch.equal(again.score.weight, heads[2])


def _load(folder: Path) -> None:
    load_parent(folder, VOCAB, [], "sdpa", 7)


def _load_scalar(folder: Path) -> None:
    load_scalar_model(folder, VOCAB, [], "sdpa", 7, pad_id=0)


def _judge(folder: Path) -> None:
    RewardModelSpec(str(folder), "fp32", 1).build()


@pytest.mark.parametrize("read", [_load, load_model, _load_scalar, _judge])
def test_weights_that_a_folder_lacks_are_not_drawn(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    folder = write_parent(tmp_path, hidden=32)
    if read is _judge:
        _write_scalar(folder, labels=1)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.0" in name and name.endswith("up_proj.weight"))
    whole = weights.pop(name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=rf"lacks weights of a \w+ model: {name}; restore"):
        read(folder)
    weights[name] = whole[1:].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=rf"{name} has shape .*, expected .*; restore"):
        read(folder)


def test_a_head_that_gives_other_numbers_is_no_reward(tmp_path: Path) -> None:
    """OpenRLHF/OpenRLHF#1039, modelscope/ms-swift#9239: the head was drawn again."""
    folder = write_parent(tmp_path, hidden=32)
    _write_scalar(folder, labels=2)
    for read in (_load_scalar, _judge):
        with pytest.raises(
            DataError, match=r"score.weight has shape \[2, 32\], expected \[1, 32\]"
        ):
            read(folder)
    _write_scalar(folder, labels=1)
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for read in (_load_scalar, _judge):
        with pytest.raises(DataError, match=r"lacks weights of a reward model: score.weight"):
            read(folder)


def test_an_output_matrix_that_was_shared_is_not_drawn(tmp_path: Path) -> None:
    """NVIDIA-NeMo/Automodel#2511: a configuration that contradicts the weights."""
    folder = write_parent(tmp_path, hidden=32)
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(DataError, match=r"lacks weights of a language model: lm_head.weight"):
        _load(folder)


def _write_scalar(folder: Path, labels: int) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, num_labels=labels)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
