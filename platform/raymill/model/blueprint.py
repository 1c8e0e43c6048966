"""Models before they have memory: on torch's meta device, with the values that each parameter will get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from raymill.model.lazy import LazyModel
from raymill.model.trace import Trace
from raymill.model.values import Values, fill

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Blueprint:
    """A model whose parameters have no memory (its buffers have), and the values of each.

    `values` stands by parameter; a tied parameter stands once.
    """

    model: PreTrainedModel
    values: dict[torch.nn.Parameter, Values]

    @classmethod
    def traced(cls, model: PreTrainedModel, trace: Trace, seed: int) -> Blueprint:
        """Return the blueprint of a model that was built while `trace` recorded; give its buffers memory.

        Raises:
            ConfigError: the values of a parameter aren't known.
        """
        with_real_buffers(model, trace)
        return cls(
            model,
            {
                parameter: trace.values_of(parameter, name, seed)
                for name, parameter in model.named_parameters()
            },
        )

    def trace(self) -> Trace:
        """Return a trace that knows the parameters' values, to record a change of the model."""
        trace = Trace()
        for parameter, values in self.values.items():
            trace.know(parameter, values)
        return trace

    def named_values(self) -> Iterator[tuple[str, torch.nn.Parameter, Values]]:
        """Yield (name, parameter, values)."""
        for name, parameter in self.model.named_parameters():
            yield name, parameter, self.values[parameter]

    def whole(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> PreTrainedModel:
        """Return the model with memory for all its parameters on this device."""

        def made(parameter: torch.nn.Parameter, values: Values) -> torch.Tensor:
            full = torch.empty(parameter.shape, dtype=dtype, device=device)
            fill(full.view(-1), values)
            return full

        return self.realized(made).to(device)

    def lazy(self) -> LazyModel:
        """Return the model with parameters that are read when they are needed, in fp32."""

        def whole(values: Values) -> torch.Tensor:
            return values.whole().float()

        sources = {name: partial(whole, values) for name, _, values in self.named_values()}
        return LazyModel(self.model, sources)

    def realized(
        self, make: Callable[[torch.nn.Parameter, Values], torch.Tensor]
    ) -> PreTrainedModel:
        """Return the model, each parameter replaced by what `make` returns for it; done once, in place."""
        new: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
        with torch.no_grad():
            for _, parameter, values in self.named_values():
                made = make(parameter, values)
                if not isinstance(made, torch.nn.Parameter):
                    made = torch.nn.Parameter(made, requires_grad=parameter.requires_grad)
                new[parameter] = made
        for module in self.model.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    # Tied parameters stay tied.
                    module._parameters[key] = new[parameter]
        self.values = {new[parameter]: values for parameter, values in self.values.items()}
        return self.model


def with_real_buffers(model: torch.nn.Module, trace: Trace) -> None:
    """Give the buffers memory: with the values that `trace` knows, else for the model's own code to fill."""
    for name, module, key in _buffers(model):
        buffer = module._buffers[key]
        assert buffer is not None, "_buffers yields buffers that exist"
        real = torch.empty_like(buffer, device="cpu")
        if trace.knows(buffer):
            real.copy_(trace.values_of(buffer, name, 0).whole())
            # transformers' mark of what it doesn't initialize again.
            real._is_hf_initialized = True  # type: ignore[attr-defined]
        module._buffers[key] = real


def _buffers(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module, str]]:
    """Return (name, module, key) of every buffer on the meta device."""
    return [
        (f"{path}.{key}".lstrip("."), module, key)
        for path, module in model.named_modules()
        for key, buffer in module._buffers.items()
        if buffer is not None and buffer.is_meta
    ]
