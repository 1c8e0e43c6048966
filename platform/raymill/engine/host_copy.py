"""A rank's training state in host memory, as it was at one step, for a checkpoint to be written from."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from raymill.checkpoint.fragments import Fragments
from raymill.engine.trainer import Trainer


class HostCopy:
    """Its buffers are kept from one checkpoint to the next: fp32 weights and moments of what this rank owns;
    pinned where a GPU copies into them."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, trainers: Iterable[Trainer]) -> Fragments:
        """Copy; the fragments returned are the buffers, which the next call overwrites."""
        fragments = []
        on_gpu = False
        for trainer in trainers:
            for owned in trainer.owned():
                arrays = {}
                for kind, view in owned.views(trainer.optimizer).items():
                    on_gpu |= view.is_cuda
                    buffer = self._buffer(f"{kind}/{owned.name}", view)
                    buffer.copy_(view, non_blocking=True)
                    arrays[kind] = buffer.numpy()
                fragments.append((owned.name, owned.start, arrays))
        if on_gpu:
            torch.cuda.synchronize()
        return fragments

    def _buffer(self, name: str, view: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() != view.numel():
            buffer = torch.empty(view.numel(), dtype=torch.float32, pin_memory=view.is_cuda)
            self._buffers[name] = buffer
        return buffer
