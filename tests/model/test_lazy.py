"""A model of any size is computed and saved with the memory of a layer."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from model.families import VOCAB_SIZE, build
from model.planned import planned
from raymill.model.lazy import LazyModel
from raymill.model.parent import with_adapters
from raymill.model.saved_tensors import SavedTensors
from raymill.model.weight_files import write_weights
from raymill.schema.sections import LoraConfig
from sections import plain

IDS = torch.tensor([[5, 6, 7, 8, 9]])


class Counted:
    """Sources of a model's parameters that know how many elements are alive."""

    def __init__(self, model: Any) -> None:
        self._values = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._alive = 0
        self.most = 0

    def sources(self) -> dict[str, Any]:
        return {name: lambda name=name: self._read(name) for name in self._values}

    def _read(self, name: str) -> torch.Tensor:
        read = self._values[name].clone()
        self._alive += read.numel()
        self.most = max(self.most, self._alive)
        weakref.finalize(read.untyped_storage(), self._dropped, read.numel())
        return read

    def _dropped(self, count: int) -> None:
        self._alive -= count


def layer_of(model: Any) -> int:
    """Return the elements of the largest layer or table."""
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    return max(*layers, *(p.numel() for p in model.parameters()))


def memory_of(model: Any) -> int:
    """Return the number of parameters that are in memory."""
    return sum(p.untyped_storage().nbytes() > p.element_size() for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3_text"])
def test_a_pass_has_one_layer_in_memory_and_is_the_same(family: str) -> None:
    model = build(family, num_hidden_layers=4).eval()
    limit = layer_of(model)
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False).logits
        counted = Counted(model)
        lazy = LazyModel(model, counted.sources())
        with lazy.computing() as computed:
            found = computed(input_ids=IDS, use_cache=False).logits
    assert torch.equal(found, expected)
    assert limit <= counted.most <= limit
    assert memory_of(model) == 0


@pytest.mark.parametrize(("family", "layers"), [("llama", 0), ("mixtral", 1)])
def test_adapted_weights_are_saved_with_one_tensor_or_converted_layer_in_memory(
    family: str, layers: int, tmp_path: Path
) -> None:
    model = build(family, num_hidden_layers=4)
    largest = max(parameter.numel() for parameter in model.parameters())
    limit = layer_of(model) if layers else largest
    lora = plain(LoraConfig, rank=2, targets=("all-linear",))
    adapted = with_adapters(planned(model), lora, [VOCAB_SIZE - 1], 7).whole()
    counted = Counted(adapted)
    tensors = SavedTensors(LazyModel(adapted, counted.sources()), "fp32")
    write_weights(tmp_path, tensors.forms, tensors.tensor)
    # With the adapters of one matrix.
    assert largest <= counted.most < 1.3 * limit


def test_an_error_in_a_pass_leaves_nothing_behind() -> None:
    model = build("llama").eval()
    lazy = LazyModel(model, Counted(model).sources())
    with pytest.raises(IndexError), lazy.computing() as computed:
        computed(input_ids=IDS + VOCAB_SIZE)
    assert memory_of(model) == 0
    assert not any(module._forward_pre_hooks for module in model.modules())
