"""Tensors of a model's files: names, shapes and values, as transformers saves the model.

Some families compute with other tensors than their files have, such as all experts of a layer in one. These are
converted layer by layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from raymill.model.lazy import LazyModel
from raymill.model.merged import PlainWeight, plain_weights
from raymill.model.weight_files import TensorForm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_LAYER = re.compile(r".*?\.\d+\.")

Tensors = dict[str, torch.Tensor]


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model itself, or the one inside peft's wrapper."""
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "peft_config") else model
    return base


class SavedTensors:
    """Tensors to save, floating-point ones in `precision`, adapters merged, tied ones once.

    The embeddings have at least so many `rows`; new ones are zero, since nothing was trained on them. `forms`
    has the tensors' forms by name, in the order in which to ask for them: a converted layer is held from its
    first tensor to its last.
    """

    def __init__(self, trained: LazyModel, precision: str, rows: int = 0) -> None:
        self._trained = trained
        self._dtype = DTYPES[precision]
        self._model = plain_model(trained.model)
        self._weights = _weights(trained.model, self._model)
        plain = {name: self._shape_alone(weight) for name, weight in self._weights.items()}
        self._table = _table(self._model)
        self._added = max(0, rows - len(plain[self._table])) if self._table in plain else 0
        if self._added:
            plain[self._table] = _with_rows(plain[self._table], self._added)
        self.forms: dict[str, TensorForm] = {}
        self._group_of: dict[str, tuple[str, ...]] = {}  # a file's tensor → the weights it needs
        self._converts = _forms(self._convert(plain)) != _forms(plain)
        for group in _layers(plain) if self._converts else [(name,) for name in plain]:
            saved = {name: plain[name] for name in group}
            for name, tensor in (self._convert(saved) if self._converts else saved).items():
                self.forms[name] = TensorForm(tuple(tensor.shape), self._cast(tensor).dtype)
                self._group_of[name] = group
        self._ready: Tensors = {}

    def tensor(self, name: str) -> torch.Tensor:
        """Compute a tensor of the files; each may be asked for once."""
        if name not in self._ready:
            self._ready.clear()
            values = {weight: self._value(weight) for weight in self._group_of[name]}
            self._ready = self._convert(values) if self._converts else values
        return self._cast(self._ready.pop(name))

    def _value(self, name: str) -> torch.Tensor:
        weight = self._weights[name]
        with self._trained.gather(weight.parameters):
            value = weight.compute().cpu()
        return _with_rows(value, self._added) if name == self._table and self._added else value

    def _shape_alone(self, weight: PlainWeight) -> torch.Tensor:
        """Return a tensor of the weight's shape without data."""
        if not weight.parameters:
            return weight.compute().to("meta")
        first = weight.parameters[0]
        return torch.empty(first.shape, dtype=first.dtype, device="meta")

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def _convert(self, tensors: Tensors) -> Tensors:
        from transformers.core_model_loading import revert_weight_conversion

        return dict(revert_weight_conversion(self._model, dict(tensors)))


def _weights(model: PreTrainedModel, plain: PreTrainedModel) -> dict[str, PlainWeight]:
    """Return the weights and the buffers that belong to the model's files."""
    ignored = set(plain._keys_to_ignore_on_save or ())
    weights = plain_weights(model)
    saved = plain.state_dict(keep_vars=True)
    for name, buffer in plain.named_buffers():
        if name in saved:
            # Adapters' wrappers stand between a module and its own buffers.
            own = name.replace("base_layer.", "")
            weights[own] = PlainWeight((), partial(_on_host, buffer))
    return {name: weight for name, weight in weights.items() if name not in ignored}


def _on_host(buffer: torch.Tensor) -> torch.Tensor:
    return buffer.detach().cpu()


def _table(model: PreTrainedModel) -> str:
    """Return the name of the input embeddings' weight."""
    table = model.get_input_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is table)


def _with_rows(table: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([table, table.new_zeros(rows, *table.shape[1:])])


def _forms(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _layers(names: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
    """Group names by their layer; those outside of the layers stand alone."""
    layers: dict[str, list[str]] = {}
    for name in names:
        found = _LAYER.match(name)
        layers.setdefault(found[0] if found else name, []).append(name)
    return map(tuple, layers.values())
