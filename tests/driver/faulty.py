"""Worker functions with an injected fault, for jobs that run on the session's Ray.

Ray Train runs this module's function in place of `launch._work`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from raymill.errors import ConfigError, DataError

Fault = Callable[[], None]


def work(fault: Callable[[int, int], None], config: dict[str, Any]) -> None:
    """`fault(start, rank)` prepares the worker, which then does what it would."""
    from raymill.driver.launch import _work

    fault(config["resolved"].start, int(os.environ["RANK"]))
    _work(config)


def with_fault(fault: Callable[[int, int], None]) -> Callable[[dict[str, Any]], None]:
    return partial(work, fault)


def raise_in(phase: str, step: int, error: Exception) -> None:
    """Raise an error in this rank when it enters a phase of a step."""
    from raymill.engine.heartbeat import Heartbeat

    beat = Heartbeat.beat

    def and_raise(self: Heartbeat, entered: str) -> None:
        beat(self, entered)
        if (entered, self.step) == (phase, step):
            raise error

    Heartbeat.beat = and_raise  # type: ignore[method-assign]


def one_after_the_other(start: int, rank: int) -> None:
    """Let rank 1 meet something else in each start, and rank 0 nothing: a bug in a step, unreadable rows,
    damaged held-out rows."""
    if rank == 0:
        return
    if start == 1:
        raise_in("forward", 3, ValueError("injected in a forward pass"))
    elif start == 2:
        from raymill.data.store.stream import RankStream

        batches = RankStream._batches

        def unreadable(self: RankStream, *arguments: Any) -> Iterator[Any]:
            for number, batch in enumerate(batches(self, *arguments)):
                if number == 1:
                    raise RuntimeError("injected where rows are read")
                yield batch

        RankStream._batches = unreadable  # type: ignore[method-assign]
    else:
        from raymill.data.store.validation import ValidationSet

        rows = ValidationSet._rank_rows

        def damaged(self: ValidationSet) -> Iterator[Any]:
            yield next(rows(self)).part(0, 1)
            raise DataError("injected damage of held-out rows")

        ValidationSet._rank_rows = damaged  # type: ignore[method-assign]


def damage_alone(start: int, rank: int) -> None:
    """Rank 1 finds, in the middle of a step, that its data is damaged."""
    if rank == 1:
        raise_in("forward", 2, DataError("injected damage of one rank's rows"))


def refusal_alone(start: int, rank: int) -> None:
    """Rank 0 finds that the configuration can't be."""
    if rank == 0:
        raise_in("optimizer", 2, ConfigError(["injected: no such thing", "nor this"]))
