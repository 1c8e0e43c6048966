"""What a worker group's end was: which rank, and whether it was lost or raised something."""

from __future__ import annotations

from collections.abc import Mapping

from raymill.driver.failure import Cause
from raymill.engine.failure_note import FailureNote, note_of
from raymill.errors import ConfigError, RaymillError, StorageError

# What the others say when one rank has gone: the words of torch's process groups.
_OF_OTHERS = (
    "closed by peer", "gloo", "nccl", "connection reset", "socket timeout", "broken pipe",
    "failed to recv", "client socket has timed out",
)  # fmt: skip

# What a disk says that may answer later.
_OF_STORAGE = (
    "no space left on device", "disk quota exceeded", "input/output error", "stale file handle",
    "connection timed out", "remote i/o error", "host is down", "transport endpoint is not connected",
)  # fmt: skip

_OF_MEMORY = ("out of memory", "outofmemory", "running low on memory", "memory monitor")

# Ray's own errors by which it passes on what somebody's code raised.
_PASSED_ON = ("RayError", "RayTaskError", "UserCodeException", "UnserializableException")
_WITHOUT_A_WORD = "the workers ended without a word"


def diagnose(
    error: BaseException | None, notes: Mapping[int, FailureNote] | None = None
) -> tuple[Cause, str]:
    """The cause and one line about it, of what Ray Train raised and of the notes of ranks that left one."""
    rank, note = _named(error, notes or {})
    if note is None:
        return Cause.LOST, _WITHOUT_A_WORD
    # A rank whose neighbour vanished says so; who vanished may have said nothing.
    cause = Cause.LOST if _is_echo(note) else _cause(note)
    return cause, note.cause if rank is None else f"rank {rank}: {note.cause}"


def final_error(
    error: BaseException | None, notes: Mapping[int, FailureNote]
) -> RaymillError | None:
    """The failed rank's error, where another try would meet it again."""
    _, note = _named(error, notes)
    if note is None or RaymillError.__name__ not in note.kinds or _cause(note) is not Cause.RAISED:
        return None
    return as_raised(note.kinds[0], note.text)


def as_raised(kind: str, text: str) -> RaymillError:
    """A worker's error as the class it was, so that its exit code is the same."""
    if kind == ConfigError.__name__:
        return ConfigError([line.split(". ", 1)[-1] for line in text.splitlines()[1:]])
    return RaymillError(text)


def _named(
    error: BaseException | None, notes: Mapping[int, FailureNote]
) -> tuple[int | None, FailureNote | None]:
    """The rank that failed, where one did, and its error: the first that isn't the echo of another's.

    A note says more than Ray knows, which sees no more than that the process has gone.
    """
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", None) or {}
    found = {rank: note_of(failure) for rank, failure in failures.items()} | dict(notes)
    if found:
        rank = min(
            found, key=lambda one: (_is_echo(found[one]), _cause(found[one]) is Cause.LOST, one)
        )
        return rank, found[rank]
    return None, None if error is None else note_of(error)


def _cause(note: FailureNote) -> Cause:
    kinds = {*note.kinds, note.cause.partition(":")[0]}
    text = f"{note.text} {note.cause}".lower()
    if MemoryError.__name__ in kinds or any(sign in text for sign in _OF_MEMORY):
        return Cause.MEMORY
    if StorageError.__name__ in kinds or any(sign in text for sign in _OF_STORAGE):
        return Cause.LOST
    of_ray = kinds & {"RayError", "RayTrainError"} and note.kinds[0] not in _PASSED_ON
    return Cause.LOST if of_ray else Cause.RAISED


def _is_echo(note: FailureNote) -> bool:
    if RaymillError.__name__ in note.kinds:
        return False
    return note.waited or any(sign in note.text.lower() for sign in _OF_OTHERS)
