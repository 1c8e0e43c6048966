"""Work that may fail on one rank: all ranks hear of it, so that none waits for a rank that gave up.

What communicates by itself can't be told of in this way: who fails in the middle of it ends its process
(`failure_note.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NoReturn, TypeVar

from raymill.engine.failure_note import FailureNote, OtherRankError, note_of
from raymill.errors import RaymillError, StorageError, ends_run

if TYPE_CHECKING:
    from raymill.engine.group import WorkerGroup

E = TypeVar("E", bound=RaymillError)
T = TypeVar("T")


def agreed(error: E) -> E:
    """Mark an error that every rank raises, each by itself: then none need be ended for the others' sake."""
    error.on_every_rank = True
    return error


def on_all_ranks(group: WorkerGroup, work: Callable[[], T]) -> T:
    """Do `work`, which doesn't communicate, on every rank; collective.

    Raises:
        RaymillError: the first failing rank's own error, on all ranks.
        OtherRankError: another rank failed in another way; it raises its own error.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:  # noqa: BLE001  (raised again once the others have heard)
        error = raised
    [failed] = group.sum(error is not None)
    if failed:
        raise_together(group, error)
    return result  # type: ignore[return-value]


def each_on_all_ranks(group: WorkerGroup, items: Iterable[T]) -> Iterator[T]:
    """Yield `items`, of which every rank has as many; collective for each.

    Raises:
        RaymillError, OtherRankError: an item couldn't be had on some rank; see `on_all_ranks`.
    """
    iterator = iter(items)
    while drawn := on_all_ranks(group, lambda: list(islice(iterator, 1))):
        yield drawn[0]


def on_rank_zero(group: WorkerGroup, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 and give its result to all; collective.

    Raises:
        RaymillError: rank 0's own error, on all ranks.
        OtherRankError: on the others; rank 0 failed in another way, and raises its own error.
    """
    result: T | None = None
    error: Exception | None = None
    if group.rank == 0:
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001  (raised again once the others have heard)
            error = raised
    result, told = group.broadcast((result, _as_told(error, group.rank)))
    if told is not None:
        _raise(error, told)
    return result  # type: ignore[return-value]


def seen_by_all(group: WorkerGroup, seen: bool, what: str) -> bool:
    """Return whether all ranks have seen something of shared storage, and False where none has; collective.

    Raises:
        StorageError: some have, and others haven't.
    """
    [count] = group.sum(seen)
    if count not in (0, group.world_size):
        raise StorageError(
            f"{what} was seen by {count:.0f} of {group.world_size} workers: is the storage shared by all nodes?"
        )
    return count > 0


def raise_together(group: WorkerGroup, error: Exception | None) -> NoReturn:
    """Raise this rank's error or, where it has none, the first of the others'; collective, and called when some
    rank is known to have one.

    Raises:
        RaymillError, OtherRankError: see `on_all_ranks`.
    """
    told = [one for one in group.gather(_as_told(error, group.rank)) if one is not None]
    _raise(error, told[0])


def _as_told(error: Exception | None, rank: int) -> RaymillError | tuple[int, FailureNote] | None:
    """Return what the other ranks hear of an error: itself, if all are to raise it."""
    if error is None or ends_run(error):
        return error
    return rank, note_of(error)


def _raise(error: Exception | None, told: RaymillError | tuple[int, FailureNote]) -> NoReturn:
    if error is not None and not ends_run(error):
        raise error
    if isinstance(told, tuple):
        raise OtherRankError(*told)
    if error is not None and told is not error:
        told.__cause__ = error  # with its traceback, for this rank's log
    raise agreed(told)
