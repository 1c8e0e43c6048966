"""Weights of a folder, planned without being read: equal to what transformers loads, in whole and in ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from model.families import attention_of, build
from raymill.model.blueprint import Blueprint
from raymill.model.folder_tensors import FileTensor
from raymill.model.loading import load_hf_blueprint, load_hf_model

# Plain ones; experts that are one tensor each in the file and one for all in the model; rows of one matrix that
# are several in the model; buffers with values of their own in the file.
FAMILIES = ("llama", "gpt2", "mixtral", "qwen3_moe", "deepseek_v3", "bloom", "zaya")


def plan(family: str, folder: Path) -> Blueprint:
    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attention_of(family)}
    return load_hf_blueprint(AutoModelForCausalLM, folder, 1, **settings)


@pytest.mark.parametrize("stored", ["fp32", "bf16", "sharded", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_planned_weights_are_those_that_transformers_loads(
    family: str, stored: str, tmp_path: Path
) -> None:
    model = build(family)
    if stored == "bf16":
        model = model.bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="20KB" if stored == "sharded" else "5GB")
    if stored == "torch":
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        torch.save(weights, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    theirs = load_hf_model(
        AutoModelForCausalLM,
        tmp_path,
        dtype=torch.float32,
        attn_implementation=attention_of(family),
    )
    blueprint = plan(family, tmp_path)
    rng = np.random.default_rng(0)
    for name, _, values in blueprint.named_values():
        expected = dict(theirs.named_parameters())[name].detach().flatten()
        start, stop = np.sort(rng.integers(0, values.numel + 1, 2)).tolist()
        assert torch.equal(values.read(start, stop).float(), expected[start:stop]), name
    ours = blueprint.whole()
    found = {**dict(ours.named_parameters()), **dict(ours.named_buffers())}
    assert list(found) == [
        name for name, _ in [*theirs.named_parameters(), *theirs.named_buffers()]
    ]
    for name, tensor in [*theirs.named_parameters(), *theirs.named_buffers()]:
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_joined_experts_are_read_in_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the elements that are asked for are read, whatever the tensor is made of."""
    build("mixtral").save_pretrained(tmp_path)
    blueprint = plan("mixtral", tmp_path)
    read = 0
    original = FileTensor.read

    def counted(self: FileTensor, start: int, stop: int) -> torch.Tensor:
        nonlocal read
        read += stop - start
        return original(self, start, stop)

    monkeypatch.setattr(FileTensor, "read", counted)
    asked = 0
    for _, _, values in blueprint.named_values():
        third = values.numel // 3
        values.read(third, 2 * third)
        asked += third
    assert asked == read > 0
