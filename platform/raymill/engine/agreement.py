"""Work that may fail on one rank: all ranks hear of it, so that none waits for a rank that gave up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from raymill.engine.group import WorkerGroup
from raymill.errors import RaymillError

T = TypeVar("T")


def on_all_ranks(group: WorkerGroup, work: Callable[[], T]) -> T:
    """Do `work` on every rank; if it fails on any, all raise the same error and none is left waiting.

    Raises:
        RaymillError: the first failing rank's own error.
    """
    result: T | None = None
    error: RaymillError | None = None
    try:
        result = work()
    except RaymillError as raised:
        error = raised
    for failed in group.gather(error):
        if failed is not None:
            raise failed
    return result  # type: ignore[return-value]


def on_rank_zero(group: WorkerGroup, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 and give its result, or its error, to all."""
    outcome: tuple[T | None, RaymillError | None] = (None, None)
    if group.rank == 0:
        try:
            outcome = (work(), None)
        except RaymillError as raised:
            outcome = (None, raised)
    result, error = group.broadcast(outcome)
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
