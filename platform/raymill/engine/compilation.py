"""Compiling a model (`train.compile`): its layers one by one, so that what differs from pass to pass, the masks
and the places where the head looks, stays outside and compiles nothing anew.

All layers of a model share their compiled code. It is made for the sizes of the first pass; a size that changes
is one that the code made next leaves open.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from raymill.engine.heartbeat import COMPILE, Heartbeat
from raymill.errors import ConfigError

# Training and measuring, with masks and without, of one row and of several, policy and critic, adapters on and
# off: each is code of its own. Beyond this many, torch would go on without compiling.
_MOST_CODES = 64


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that transformers recomputes one by one, which are those to be compiled so.

    Raises:
        ConfigError: there are none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            [
                f"train.compile=true: {type(model).__name__} isn't made of layers; set train.compile=false"
            ]
        )
    return layers


def compile_layers(layers: list[torch.nn.Module]) -> None:
    """Compile each layer at its first pass; hooks on it stay outside."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = _MOST_CODES
    for layer in layers:
        layer.forward = torch.compile(layer.forward)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within the block layers run as they are: where text is sampled, say, every pass has other sizes."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and its import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class Compiles:
    """Tells the pulse of compiles as they begin and end, whatever they interrupt, and adds up their time."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._seconds = 0.0
        self._pulse = heartbeat
        self._began = 0.0

    @contextmanager
    def told(self) -> Iterator[None]:
        """Within the block."""
        from torch._dynamo.callback import callback_handler

        callback_handler.register_start_callback(self._begin)
        callback_handler.register_end_callback(self._end)
        try:
            yield
        finally:
            callback_handler.remove_start_callback(self._begin)
            callback_handler.remove_end_callback(self._end)

    def figures(self) -> dict[str, float]:
        """Seconds since the last time, where there were any."""
        seconds, self._seconds = self._seconds, 0.0
        return {"perf/compile_s": seconds} if seconds else {}

    def _begin(self, _of: Any) -> None:
        self._began = time.perf_counter()
        self._pulse.aside(COMPILE)

    def _end(self, _of: Any) -> None:
        self._seconds += time.perf_counter() - self._began
        self._pulse.aside(None)
