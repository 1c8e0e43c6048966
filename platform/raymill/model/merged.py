"""A model's weights as a plain model of its architecture has them, one at a time: adapters are added to what
they adapt, in copies, so that the trained weights stay bit for bit what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

# Makes parameters whole within a block, where they are shared out over ranks.
Gather = Callable[[Sequence[torch.nn.Parameter]], AbstractContextManager[None]]


def merged_weights(model: Any, gather: Gather) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor on the host) of every weight, tied ones once; the tensor is valid until the next.

    Collective where `gather` is: exhaust it on every rank.
    """
    if not hasattr(model, "peft_config"):
        for name, parameter in model.named_parameters():
            with gather([parameter]):
                yield name, parameter.detach().cpu()
        return
    hub = model.get_base_model()
    adapted = {name: module for name, module in hub.named_modules() if _is_adapted(module)}
    inside = tuple(f"{name}." for name in adapted)
    seen: set[int] = set()
    for name, module in adapted.items():
        if not name.startswith(inside):
            yield from _adapted(name, module, gather, seen)
    for name, parameter in hub.named_parameters():
        if not name.startswith(inside) and id(parameter) not in seen:
            with gather([parameter]):
                yield name, parameter.detach().cpu()


def _is_adapted(module: Any) -> bool:
    from peft.tuners.lora import LoraLayer
    from peft.utils import TrainableTokensWrapper

    return isinstance(module, LoraLayer | TrainableTokensWrapper)


def _adapted(
    name: str, module: Any, gather: Gather, seen: set[int]
) -> Iterator[tuple[str, torch.Tensor]]:
    from peft.utils import TrainableTokensWrapper

    if isinstance(module, TrainableTokensWrapper):
        weight = module.original_module.weight
        if id(weight) in seen:  # the output matrix, where it is the input's
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
    """Adapters around one module: of experts, which are parameters, each has its own around the next."""
    from peft.tuners.lora import LoraLayer

    while isinstance(module, LoraLayer):
        yield module
        module = module.base_layer
