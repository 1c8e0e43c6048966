"""A model whose parameters are read when they are needed, and dropped after that.

An export and its check need a model's weights one after the other. A forward pass needs those of one layer at a
time, so that a model of any size is computed with the memory of its largest layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Read = Callable[[], torch.Tensor]


class LazyModel:
    """A model, and where to read the parameters that aren't in memory.

    `sources`: parameter name → function that returns its values on the host, in fp32. These parameters have
    their shape and no memory until they are gathered; all others stay as they are.
    """

    def __init__(self, model: PreTrainedModel, sources: Mapping[str, Read] | None = None) -> None:
        self.model = model
        self._sources: dict[torch.nn.Parameter, Read] = {}
        self._present: set[torch.nn.Parameter] = set()
        sources = sources or {}
        empty: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            if name in sources:
                # Data can't be moved from the meta device, so that the parameter itself is replaced.
                placeholder = torch.nn.Parameter(_absent(parameter), parameter.requires_grad)
                empty[parameter] = placeholder
                self._sources[placeholder] = sources[name]
        for module in model.modules():
            for key, held in module._parameters.items():
                if held is not None and held in empty:
                    module._parameters[key] = empty[held]

    @contextmanager
    def gather(self, parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
        """Have these parameters in memory within the block."""
        absent = [
            parameter
            for parameter in dict.fromkeys(parameters)
            if parameter in self._sources and parameter not in self._present
        ]
        try:
            for parameter in absent:
                parameter.data = self._sources[parameter]()
                self._present.add(parameter)
            yield
        finally:
            for parameter in absent:
                parameter.data = _absent(parameter)
                self._present.discard(parameter)

    @contextmanager
    def computing(self) -> Iterator[PreTrainedModel]:
        """Give the model for forward passes within the block; each layer's weights are read for its pass."""
        handles = []
        open_: dict[torch.nn.Module, list[AbstractContextManager[None]]] = {}
        for module, parameters in _units(self.model):

            def enter(
                module: torch.nn.Module, *_: object, own: Sequence[torch.nn.Parameter] = parameters
            ) -> None:
                gathered = self.gather(own)
                gathered.__enter__()
                open_.setdefault(module, []).append(gathered)

            def leave(module: torch.nn.Module, *_: object) -> None:
                open_[module].pop().__exit__(None, None, None)

            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
        with ExitStack() as stack:
            for handle in handles:
                stack.callback(handle.remove)
            # Some families ask the output matrix for its dtype before its pass, which computes it.
            stack.enter_context(self.gather(_computed_on_access(self.model)))
            yield self.model


def _absent(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return a tensor of one element in the parameter's shape; NaN, so that its use shows."""
    return torch.full((), torch.nan, dtype=parameter.dtype).expand(parameter.shape)


def _computed_on_access(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """Yield the parameters of the tables whose rows for new tokens are trained."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            yield from module.parameters()


def _units(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, list[torch.nn.Parameter]]]:
    """Yield the modules before whose passes parameters are read, with these parameters.

    They are the layers, which are elements of a list of modules, and what stands outside of them.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = [
        child
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList)
        for child in module
    ]
    within = {module for layer in layers for module in layer.modules()} - {model}

    def walk(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, list[torch.nn.Parameter]]]:
        # Adapters' wrappers compute with the weights inside them without calling the modules there.
        whole = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        if whole or module in within:
            yield module, list(module.parameters())
            return
        if own := list(module.parameters(recurse=False)):
            yield module, own
        for child in module.children():
            yield from walk(child)

    yield from walk(model)
