"""Merged weights of a model, one at a time, as a plain model of its architecture has them.

Adapters are added to copies of the weights that they adapt, so the trained weights don't change by a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A context in which the parameters are whole, if they are partitioned over ranks or not in memory.
Gather = Callable[[Sequence[torch.nn.Parameter]], AbstractContextManager[None]]


@dataclass(frozen=True)
class PlainWeight:
    """A weight of the plain model.

    `compute` returns it on its device while `parameters`, from which it is computed, are whole; the first has
    its shape.
    """

    parameters: tuple[torch.nn.Parameter, ...]
    compute: Callable[[], torch.Tensor]


def merged_weights(model: PreTrainedModel, gather: Gather) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor on its device) of every weight, tied ones once; a tensor is valid until the next one.

    Collective where `gather` is: exhaust it on every rank.
    """
    for name, weight in plain_weights(model).items():
        with gather(weight.parameters):
            yield name, weight.compute()


def plain_weights(model: PreTrainedModel) -> dict[str, PlainWeight]:
    """Return name → weight of the plain model; tied weights once, by their first name."""
    if not hasattr(model, "peft_config"):
        return {name: _unchanged(parameter) for name, parameter in model.named_parameters()}
    base = model.get_base_model()
    adapted = {name: module for name, module in base.named_modules() if _is_adapted(module)}
    # Parameters inside an adapted module come from `_adapted`, merged.
    inside = tuple(f"{name}." for name in adapted)
    weights: dict[str, PlainWeight] = {}
    seen: set[torch.nn.Parameter] = set()
    for name, module in adapted.items():
        # Adapters may be nested; only the outermost gives plain weights.
        if not name.startswith(inside):
            for key, weight in _adapted(module):
                # The output matrix may be tied to the input embeddings.
                if weight.parameters[0] not in seen:
                    weights[f"{name}.{key}"] = weight
                    seen.add(weight.parameters[0])
    for name, parameter in base.named_parameters():
        if not name.startswith(inside) and parameter not in seen:
            weights[name] = _unchanged(parameter)
    return weights


def _unchanged(parameter: torch.nn.Parameter) -> PlainWeight:
    return PlainWeight((parameter,), parameter.detach)


def _is_adapted(module: torch.nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer
    from peft.utils import TrainableTokensWrapper
    from peft.utils.other import ModulesToSaveWrapper

    return isinstance(module, LoraLayer | TrainableTokensWrapper | ModulesToSaveWrapper)


def _adapted(module: Any) -> Iterator[tuple[str, PlainWeight]]:
    """Yield (name inside the module, weight) of an adapted module's plain weights."""
    from peft.utils import TrainableTokensWrapper
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        # A copy is trained in place of the module itself, such as a scalar head.
        trained = module.modules_to_save[module.active_adapters[0]]
        for key, parameter in trained.named_parameters():
            yield key, _unchanged(parameter)
        return
    if isinstance(module, TrainableTokensWrapper):
        weight = module.original_module.weight
        parameters = (weight, *(p for p in module.parameters() if p is not weight))
        yield "weight", PlainWeight(parameters, partial(_with_tokens, module))
        return
    layers = list(_layers(module))
    for key, parameter in module.get_base_layer().named_parameters():
        adapting = [layer for layer in layers if key == getattr(layer, "parameter_name", "weight")]
        factors = [
            factor
            for layer in adapting
            for factor in set(layer.parameters()) - set(layer.base_layer.parameters())
        ]
        # In an order that is the same on every rank.
        named = [p for p in module.parameters() if any(p is factor for factor in factors)]
        yield key, PlainWeight((parameter, *named), partial(_merged, parameter, adapting))


def _with_tokens(module: Any) -> torch.Tensor:
    merged: torch.Tensor = module.token_adapter.get_merged_weights(module.active_adapters)
    return merged.detach()


@torch.no_grad()
def _merged(parameter: torch.nn.Parameter, adapting: Sequence[Any]) -> torch.Tensor:
    weight = parameter.detach().clone()
    for layer in adapting:
        for adapter in layer.active_adapters:
            weight += layer.get_delta_weight(adapter).to(weight.dtype)
    return weight


def _layers(module: Any) -> Iterator[Any]:
    """Yield the nested adapter layers around one module; experts that are parameters have a layer each."""
    from peft.tuners.lora import LoraLayer

    while isinstance(module, LoraLayer):
        yield module
        module = module.base_layer
