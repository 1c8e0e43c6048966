"""Compilation of a model (`train.compile`), layer by layer.

Masks and the positions at which the head is evaluated change from pass to pass. They stay outside the compiled
layers, so that their changes don't trigger recompilation. All layers of a model share their compiled code. It
is made for the sizes of the first pass; a size that changes later is dynamic in the code compiled next.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raymill.engine.heartbeat import COMPILE, Heartbeat
from raymill.errors import ConfigError

# Each combination has compiled code of its own: training or evaluation, with masks or without, one row or
# several, policy or critic, adapters on or off. Beyond this limit torch would run the rest uncompiled.
_RECOMPILE_LIMIT = 64


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the model's layers: the modules that transformers recomputes one by one (checkpointing).

    Raises:
        ConfigError: the model has none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers:
        raise ConfigError(
            [
                f"train.compile=true: {type(model).__name__} isn't made of layers; set train.compile=false"
            ]
        )
    return layers


def compile_layers(layers: list[torch.nn.Module]) -> None:
    """Compile each layer at its first pass; hooks on the layer stay outside."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    for layer in layers:
        # Compiling `forward` and not the module keeps the parameters' names.
        layer.forward = torch.compile(layer.forward)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run layers uncompiled within the block, as for sampling, where the sizes differ in every pass."""
    # If dynamo isn't loaded, nothing was compiled; its import takes seconds.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class CompileTimer:
    """Reports compilations to the heartbeat, whichever phase they interrupt, and adds up their time."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._seconds = 0.0
        self._heartbeat = heartbeat
        self._started = 0.0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Report and time the compilations within the block."""
        from torch._dynamo.callback import callback_handler

        # dynamo calls these around every compilation, which may happen in any forward or backward pass.
        callback_handler.register_start_callback(self._on_start)
        callback_handler.register_end_callback(self._on_end)
        try:
            yield
        finally:
            callback_handler.remove_start_callback(self._on_start)
            callback_handler.remove_end_callback(self._on_end)

    def metrics(self) -> dict[str, float]:
        """Return the seconds spent since the last call; nothing if there was no compilation."""
        seconds, self._seconds = self._seconds, 0.0
        return {"perf/compile_s": seconds} if seconds else {}

    def _on_start(self, _arguments: object) -> None:
        self._started = time.perf_counter()
        self._heartbeat.aside(COMPILE)

    def _on_end(self, _arguments: object) -> None:
        self._seconds += time.perf_counter() - self._started
        self._heartbeat.aside(None)
