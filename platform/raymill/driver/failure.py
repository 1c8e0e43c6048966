"""What follows a failure: try again after a pause, or stop. Pure, so that a table of cases can show it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class RunState(StrEnum):
    """Where a run is, as the driver sees it."""

    STARTING = "starting"  # workers come up and load their state
    RUNNING = "running"
    COMMITTING = "committing"  # the last checkpoint before an end or a change of size
    RECOVERING = "recovering"  # after a failure, before the next start
    DRAINING = "draining"  # asked to end by whoever runs the machine
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


class Cause(StrEnum):
    """What kind of thing failed."""

    LOST = "lost"  # a process, a node, a connection: nothing that the program did
    RAISED = "raised"  # an exception, which may come again
    MEMORY = "memory"


@dataclass(frozen=True)
class Failure:
    """An attempt's end. `step` is the last one finished, `committed` the last one committed."""

    cause: Cause
    what: str  # one line
    step: int
    committed: int


@dataclass(frozen=True)
class Retry:
    """Start again from the last commit, after a pause."""

    pause_s: float


@dataclass(frozen=True)
class GiveUp:
    """Another try would end the same way, or has often enough."""

    why: str


def decide_retry(failures: Sequence[Failure], allowed: int) -> Retry | GiveUp:
    """What to do after the last of these failures of one run, oldest first.

    `allowed` of them may follow each other without a new checkpoint: a run that gets on is tried again for
    ever, as a long one on many machines has to be.
    """
    last = failures[-1]
    if last.cause is Cause.MEMORY:
        return GiveUp("out of memory")
    if last.cause is Cause.RAISED and any(_same(last, earlier) for earlier in failures[:-1]):
        return GiveUp(f"the same error at step {last.step + 1} as before")
    in_a_row = _without_progress(failures)
    if in_a_row > allowed:
        return GiveUp(f"{in_a_row} failures without a new checkpoint (run.max_failures={allowed})")
    return Retry(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (in_a_row - 1)))


def _same(one: Failure, other: Failure) -> bool:
    return (one.cause, one.step, _signature(one.what)) == (
        other.cause,
        other.step,
        _signature(other.what),
    )


def _without_progress(failures: Sequence[Failure]) -> int:
    """Failures at the end that saw the same last checkpoint."""
    count = 0
    for failure in reversed(failures):
        if failure.committed != failures[-1].committed:
            break
        count += 1
    return count


def _signature(what: str) -> str:
    """An error without what differs each time it is raised: addresses, process numbers, times."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", what)
