"""The worker group as the loop sees it: who I am, and a few small collectives."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from raymill.engine.heartbeat import WAIT_S

T = TypeVar("T")


class WorkerGroup:
    """All ranks of a run. Every method that communicates must be called by all of them."""

    def __init__(self, device: torch.device, process_group: Any = None) -> None:
        self._process_group = process_group
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.device = device

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank, in rank order."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._process_group)
        return values  # type: ignore[return-value]

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._process_group)
        return box[0]

    def sum(self, *values: float) -> list[float]:
        """Sums over the ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total, group=self._process_group)
        result: list[float] = total.tolist()
        return result

    def all_to_all(
        self,
        received: torch.Tensor,
        sent: torch.Tensor,
        sizes_in: Sequence[int],
        sizes_out: Sequence[int],
    ) -> None:
        """Fill `received` with so many elements from each rank, of `sent`'s so many to each rank; both flat."""
        dist.all_to_all_single(
            received, sent, list(sizes_in), list(sizes_out), group=self._process_group
        )

    def beside(self) -> WorkerGroup:
        """The same ranks with messages of their own, through host memory, for a thread that talks while the
        training does. Collective."""
        if self.world_size == 1:
            return WorkerGroup(torch.device("cpu"))
        return WorkerGroup(
            torch.device("cpu"), dist.new_group(backend="gloo", timeout=timedelta(seconds=WAIT_S))
        )
