"""Failures of a run: diagnose how the workers ended, and decide what follows.

Everything here is pure, so that tests can state it as a table of cases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from raymill.engine.failure_note import FailureNote
from raymill.engine.resolved_run import ResolvedRun
from raymill.errors import ConfigError, GroupError, RaymillError, StorageError

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

# What the other ranks report when one is gone: the words of torch's process groups.
_PEER_LOST = (
    "closed by peer", "gloo", "nccl", "connection reset", "socket timeout", "broken pipe",
    "failed to recv", "client socket has timed out",
)  # fmt: skip

# What a file system reports that may answer later.
_STORAGE_FAILED = (
    "no space left on device", "disk quota exceeded", "input/output error", "stale file handle",
    "connection timed out", "remote i/o error", "host is down", "transport endpoint is not connected",
)  # fmt: skip

_OUT_OF_MEMORY = ("out of memory", "outofmemory", "running low on memory", "memory monitor")

# Ray's own errors that wrap an error of the program.
_WRAPPERS = ("RayError", "RayTaskError", "UserCodeException", "UnserializableException")


class RunState(StrEnum):
    """State of a run, as the driver sees it."""

    STARTING = "starting"  # workers come up and load their state
    RUNNING = "running"
    COMMITTING = "committing"  # the last checkpoint before an end or a change of size
    RECOVERING = "recovering"  # after a failure, before the next start
    DRAINING = "draining"  # asked to end by the machine's owner
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


class Cause(StrEnum):
    """Kind of a failure."""

    LOST = "lost"  # a process, a node or a connection: nothing that the program did
    RAISED = "raised"  # an exception, which may come again
    MEMORY = "memory"


@dataclass(frozen=True)
class Failure:
    """End of an attempt. `step` is the last one completed, `committed` the last one committed."""

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
    """End the run: another attempt would fail in the same way, or too many have."""

    why: str


def decide_retry(failures: Sequence[Failure], allowed: int) -> Retry | GiveUp:
    """Decide what follows the last of a run's failures, which come oldest first.

    `allowed` of them may follow each other without a new checkpoint. A run that makes progress is retried
    without limit, as a long run on many machines must be.
    """
    last = failures[-1]
    if last.cause is Cause.MEMORY:
        return GiveUp("out of memory")
    if last.cause is Cause.RAISED and any(_same(last, earlier) for earlier in failures[:-1]):
        return GiveUp(f"the same error at step {last.step + 1} as before")
    # A failure that another attempt may not meet. Each one without progress doubles the pause.
    in_a_row = _without_progress(failures)
    if in_a_row > allowed:
        return GiveUp(f"{in_a_row} failures without a new checkpoint (run.max_failures={allowed})")
    return Retry(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (in_a_row - 1)))


def _same(first: Failure, second: Failure) -> bool:
    def identity(failure: Failure) -> tuple[Cause, int, str]:
        # Addresses, process numbers and times differ each time that an error is raised.
        return failure.cause, failure.step, re.sub(r"0x[0-9a-f]+|\d+", "#", failure.what)

    return identity(first) == identity(second)


def _without_progress(failures: Sequence[Failure]) -> int:
    """Count the failures at the end that saw the same last checkpoint."""
    count = 0
    for failure in reversed(failures):
        if failure.committed != failures[-1].committed:
            break
        count += 1
    return count


def diagnose(
    error: BaseException | None,
    notes: Mapping[int, FailureNote] | None = None,
    hosts: Mapping[int, str] | None = None,
) -> tuple[Cause, str]:
    """Return the cause of an attempt's end and one line about it.

    `error` is what Ray Train raised; `notes` are those of the ranks that could leave one; `hosts` are
    those of all ranks, as far as they are known.
    """
    rank, note = _first_failure(error, notes or {})
    if note is None:
        return Cause.LOST, "the workers ended without a word"
    # A rank whose peer vanished reports that; the one that vanished may have left nothing.
    cause = Cause.LOST if _is_echo(note) else _cause(note)
    if rank is None:
        return cause, note.cause
    host = note.host or (hosts or {}).get(rank, "")
    return cause, f"rank {rank}{f' on {host}' if host else ''}: {note.cause}"


def final_error(
    error: BaseException | None, notes: Mapping[int, FailureNote]
) -> RaymillError | None:
    """Return the failed rank's error if another attempt would meet it again."""
    _, note = _first_failure(error, notes)
    if note is None or RaymillError.__name__ not in note.kinds or _cause(note) is not Cause.RAISED:
        return None
    return as_raised(note.kinds[0], note.text)


def as_raised(kind: str, text: str) -> RaymillError:
    """Return a worker's error as the class that it was, so that the exit code is the same."""
    if kind == ConfigError.__name__:
        # The text is the numbered list that ConfigError makes of its problems.
        return ConfigError([line.split(". ", 1)[-1] for line in text.splitlines()[1:]])
    return RaymillError(text)


def _first_failure(
    error: BaseException | None, notes: Mapping[int, FailureNote]
) -> tuple[int | None, FailureNote | None]:
    """Return the rank that failed, if there is one, and its error: the first that isn't another rank's echo.

    A note says more than Ray's error, which only knows that the process is gone.
    """
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", None) or {}
    by_rank = {rank: FailureNote.from_error(failure) for rank, failure in failures.items()} | dict(
        notes
    )
    if by_rank:
        rank = min(
            by_rank,
            key=lambda rank: (_is_echo(by_rank[rank]), _cause(by_rank[rank]) is Cause.LOST, rank),
        )
        return rank, by_rank[rank]
    return None, None if error is None else FailureNote.from_error(error)


def _cause(note: FailureNote) -> Cause:
    kinds = {*note.kinds, note.cause.partition(":")[0]}
    text = f"{note.text} {note.cause}".lower()
    if MemoryError.__name__ in kinds or any(sign in text for sign in _OUT_OF_MEMORY):
        return Cause.MEMORY
    lost = {StorageError.__name__, GroupError.__name__}
    if kinds & lost or any(sign in text for sign in _STORAGE_FAILED):
        return Cause.LOST
    of_ray = kinds & {"RayError", "RayTrainError"} and note.kinds[0] not in _WRAPPERS
    return Cause.LOST if of_ray else Cause.RAISED


def _is_echo(note: FailureNote) -> bool:
    """Tell whether a rank only reports that another one is gone."""
    if RaymillError.__name__ in note.kinds:
        return False
    return note.waited or any(sign in note.text.lower() for sign in _PEER_LOST)


def memory_advice(resolved: ResolvedRun) -> str:
    """Return the planned memory per worker, and the settings that lower it."""
    train, zero = resolved.job.train, resolved.job.zero
    hints = [
        f"lower train.micro_batch (now {train.micro_batch})" if train.micro_batch > 1 else "",
        f"raise zero.stage (now {zero.stage}) or run.workers"
        if zero.stage < 3
        else "raise run.workers",
        "" if train.activation_checkpointing else "set train.activation_checkpointing=true",
    ]
    planned = resolved.memory_plan or "unknown"
    return f"\nplanned: {planned}; to need less: {', or '.join(filter(None, hints))}."
