"""The worker group: its ranks, a few small collectives, and work that may fail on one rank.

When one rank fails, the others must not wait for it in their next collective. `on_all_ranks` and its like run
work that doesn't communicate and tell every rank how it ended. Work that communicates can't be treated so: a
rank that fails in the middle of it ends its process (`failure_note.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from raymill.engine.failure_note import FailureNote, OtherRankError
from raymill.engine.heartbeat import COLLECTIVE_TIMEOUT_S
from raymill.errors import RaymillError, StorageError, ends_run

E = TypeVar("E", bound=RaymillError)
T = TypeVar("T")


class WorkerGroup:
    """All ranks of a run. Every method that communicates must be called by all of them."""

    def __init__(
        self, device: torch.device, process_group: dist.ProcessGroup | None = None
    ) -> None:
        self._process_group = process_group
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.device = device

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in rank order, on every rank.

        Every rank receives and unpickles as many values as there are ranks, each padded to the largest. So it
        is for starts and failures, not for steps; docs/reliability.md lists its uses.
        """
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._process_group)
        return values  # type: ignore[return-value]

    def gather_to_zero(self, data: bytes) -> list[bytes]:
        """Return every rank's bytes, of which all have equally many, on rank 0; [] elsewhere."""
        if self.world_size == 1:
            return [data]
        sent = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        received = (
            [torch.empty_like(sent) for _ in range(self.world_size)] if self.rank == 0 else None
        )
        dist.gather(sent, received, dst=0, group=self._process_group)
        return [part.cpu().numpy().tobytes() for part in received or ()]

    def broadcast(self, value: T, source: int = 0) -> T:
        """Return the value of rank `source` on every rank."""
        if self.world_size == 1:
            return value
        # torch broadcasts into a list, in place.
        box = [value]
        dist.broadcast_object_list(box, src=source, group=self._process_group)
        return box[0]

    def sum(self, *values: float) -> list[float]:
        """Return the sum of each value over the ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        total: list[float] = self.sum_array(np.array(values, dtype=np.float64)).tolist()
        return total

    def sum_array(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the sum of an array over the ranks, which all have one of this shape."""
        if self.world_size == 1:
            return values
        total = torch.from_numpy(values.copy()).to(self.device)
        dist.all_reduce(total, group=self._process_group)
        summed: npt.NDArray[np.float64] = total.cpu().numpy()
        return summed

    def first(self, applies: bool) -> int | None:
        """Return the lowest rank for which `applies` is true; None if there is none."""
        if self.world_size == 1:
            return 0 if applies else None
        number = self.rank if applies else self.world_size
        lowest = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.all_reduce(lowest, op=dist.ReduceOp.MIN, group=self._process_group)
        return None if lowest == self.world_size else int(lowest)

    def largest(self, value: int) -> int:
        """Return the largest of the ranks' values."""
        if self.world_size == 1:
            return value
        most = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self._process_group)
        return int(most)

    def scatter(self, parts: Sequence[T] | None) -> T:
        """Return this rank's one of the parts that rank 0 has; it receives no other's.

        Parts travel pickled, padded to the largest.
        """
        if self.world_size == 1:
            assert parts is not None, "rank 0 has the parts"
            return parts[0]
        box: list[T | None] = [None]
        dist.scatter_object_list(
            box, None if parts is None else list(parts), src=0, group=self._process_group
        )
        return box[0]  # type: ignore[return-value]

    def stack(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """[N, K] Return every rank's K numbers on every rank: 8 bytes each, without pickling."""
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size == 1:
            return own[None].cpu().numpy()
        table = torch.empty(self.world_size * len(values), dtype=own.dtype, device=self.device)
        dist.all_gather_single(table, own, group=self._process_group)
        stacked: npt.NDArray[np.float64] = table.view(self.world_size, -1).cpu().numpy()
        return stacked

    def all_to_all(
        self,
        received: torch.Tensor,
        sent: torch.Tensor,
        sizes_in: Sequence[int],
        sizes_out: Sequence[int],
    ) -> None:
        """Send `sizes_out[r]` elements of `sent` to each rank r and receive `sizes_in[r]` from it, flat."""
        dist.all_to_all_single(
            received, sent, list(sizes_in), list(sizes_out), group=self._process_group
        )

    def background_group(self) -> WorkerGroup:
        """Return the same ranks with a process group of their own, over host memory; collective.

        A background thread that communicates needs it: in one process group its messages would be matched with
        those of training.
        """
        if self.world_size == 1:
            return WorkerGroup(torch.device("cpu"))
        timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
        return WorkerGroup(torch.device("cpu"), dist.new_group(backend="gloo", timeout=timeout))


def agreed(error: E) -> E:
    """Mark an error that every rank raises by itself, so that no process need be ended to stop the others."""
    error.on_every_rank = True
    return error


def on_all_ranks(group: WorkerGroup, work: Callable[[], T]) -> T:
    """Run `work`, which doesn't communicate, on every rank; collective.

    Raises:
        RaymillError: the first failing rank's own error, on all ranks.
        OtherRankError: another rank failed in another way; that rank raises its own error.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:  # noqa: BLE001  (raised again once the other ranks know of it)
        error = raised
    [failures] = group.sum(error is not None)
    if failures:
        raise_together(group, error)
    return result  # type: ignore[return-value]


def iterate_on_all_ranks(group: WorkerGroup, items: Iterable[T]) -> Iterator[T]:
    """Yield `items`, of which every rank has equally many; collective for each.

    Raises:
        RaymillError, OtherRankError: some rank failed to produce an item; see `on_all_ranks`.
    """
    iterator = iter(items)
    # An empty list ends the iteration; None could be an item.
    while drawn := on_all_ranks(group, lambda: list(islice(iterator, 1))):
        yield drawn[0]


def on_rank_zero(group: WorkerGroup, work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and return its result on all ranks; collective.

    Raises:
        RaymillError: rank 0's own error, on all ranks.
        OtherRankError: on the others; rank 0 failed in another way, and raises its own error.
    """
    result: T | None = None
    error: Exception | None = None
    if group.rank == 0:
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001  (raised again once the other ranks know of it)
            error = raised
    # Result and report travel in one message, so success costs one collective.
    result, report = group.broadcast((result, _report(error, group.rank)))
    if report is not None:
        _raise(error, report)
    return result  # type: ignore[return-value]


def exists_on_all_ranks(group: WorkerGroup, exists: bool, what: str) -> bool:
    """Return True where all ranks see a file of shared storage, False where none does; collective.

    Raises:
        StorageError: some see it and others don't.
    """
    # A rank whose node sees another folder would otherwise take another branch and hang the group.
    [count] = group.sum(exists)
    if count not in (0, group.world_size):
        raise StorageError(
            f"{what} was seen by {count:.0f} of {group.world_size} workers: is the storage shared by all nodes?"
        )
    return count > 0


def raise_together(group: WorkerGroup, error: Exception | None) -> NoReturn:
    """Raise this rank's error or, where it has none, the first of the others'.

    Collective, and called only when some rank is known to have an error.

    Raises:
        RaymillError, OtherRankError: see `on_all_ranks`.
    """
    failed = group.first(error is not None)
    assert failed is not None, "some rank has an error"
    report = group.broadcast(_report(error, group.rank), failed)
    assert report is not None, "the rank that reports has an error"
    _raise(error, report)


def _report(error: Exception | None, rank: int) -> RaymillError | tuple[int, FailureNote] | None:
    """Return an error as the other ranks receive it: the error itself if all are to raise it, else a note."""
    if error is None or ends_run(error):
        return error
    return rank, FailureNote.of_this_rank(error)


def _raise(error: Exception | None, report: RaymillError | tuple[int, FailureNote]) -> NoReturn:
    if error is not None and not ends_run(error):
        raise error
    if isinstance(report, tuple):
        raise OtherRankError(*report)
    if error is not None and report is not error:
        # Keep this rank's own error, with its traceback, for this rank's log.
        report.__cause__ = error
    raise agreed(report)
