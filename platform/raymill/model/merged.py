"""Merged weights of a model, one at a time, as a plain model of its architecture has them.

Adapters are added to copies of the weights that they adapt, so the trained weights don't change by a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A context in which the parameters are whole, if they are partitioned over ranks.
Gather = Callable[[Sequence[torch.nn.Parameter]], AbstractContextManager[None]]


def merged_weights(model: PreTrainedModel, gather: Gather) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor on the host) of every weight, tied ones once; a tensor is valid until the next one.

    Collective where `gather` is: exhaust it on every rank.
    """
    if not hasattr(model, "peft_config"):
        for name, parameter in model.named_parameters():
            with gather([parameter]):
                yield name, parameter.detach().cpu()
        return
    base = model.get_base_model()
    adapted = {name: module for name, module in base.named_modules() if _is_adapted(module)}
    # Parameters inside an adapted module come from `_adapted`, merged.
    inside = tuple(f"{name}." for name in adapted)
    seen: set[int] = set()
    for name, module in adapted.items():
        # Adapters may be nested; only the outermost gives plain weights.
        if not name.startswith(inside):
            yield from _adapted(name, module, gather, seen)
    for name, parameter in base.named_parameters():
        if not name.startswith(inside) and id(parameter) not in seen:
            with gather([parameter]):
                yield name, parameter.detach().cpu()


def _is_adapted(module: torch.nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer
    from peft.utils import TrainableTokensWrapper

    return isinstance(module, LoraLayer | TrainableTokensWrapper)


def _adapted(
    name: str, module: Any, gather: Gather, seen: set[int]
) -> Iterator[tuple[str, torch.Tensor]]:
    from peft.utils import TrainableTokensWrapper

    if isinstance(module, TrainableTokensWrapper):
        weight = module.original_module.weight
        # The output matrix may be tied to the input embeddings.
        if id(weight) in seen:
            return
        seen.add(id(weight))
        with gather(list(module.parameters())):
            merged = module.token_adapter.get_merged_weights(module.active_adapters)
            yield f"{name}.weight", merged.detach().cpu()
        return
    layers = list(_layers(module))
    with gather(list(module.parameters())), torch.no_grad():
        for key, parameter in module.get_base_layer().named_parameters():
            weight = parameter.detach().clone()
            for layer in layers:
                if key == getattr(layer, "parameter_name", "weight"):
                    for adapter in layer.active_adapters:
                        weight += layer.get_delta_weight(adapter).to(weight.dtype)
            yield f"{name}.{key}", weight.cpu()


def _layers(module: Any) -> Iterator[Any]:
    """Yield the nested adapter layers around one module; experts that are parameters have a layer each."""
    from peft.tuners.lora import LoraLayer

    while isinstance(module, LoraLayer):
        yield module
        module = module.base_layer
