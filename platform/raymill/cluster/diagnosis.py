"""What a worker group's end was: which rank, and whether it was lost or raised something."""

from __future__ import annotations

from collections.abc import Mapping

from raymill.cluster.failure import Cause
from raymill.errors import StorageError

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


def diagnose(error: BaseException) -> tuple[Cause, str]:
    """The cause and one line about it, of what Ray Train raised."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return _single(getattr(error, "controller_failure", error))
    return _of_ranks(failures)


def _of_ranks(failures: Mapping[int, BaseException]) -> tuple[Cause, str]:
    """The first rank's cause that isn't the echo of another's."""
    found = {rank: _single(error) for rank, error in sorted(failures.items())}
    echoes = {rank for rank, (_, text) in found.items() if _is_echo(text)}
    order = sorted(found, key=lambda rank: (rank in echoes, found[rank][0] is Cause.LOST, rank))
    rank = order[0]
    cause, text = found[rank]
    # A rank whose neighbour vanished says so; who vanished may have said nothing.
    return (Cause.LOST if rank in echoes else cause), f"rank {rank}: {text}"


def _single(error: BaseException) -> tuple[Cause, str]:
    from ray.exceptions import RayError, RayTaskError
    from ray.train.v2._internal.exceptions import RayTrainError

    error = getattr(error, "health_check_failure", error)
    text = _one_line(error)
    if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _OF_MEMORY):
        return Cause.MEMORY, text
    if isinstance(error, StorageError) or any(sign in str(error).lower() for sign in _OF_STORAGE):
        return Cause.LOST, text
    of_ray = isinstance(error, RayError | RayTrainError) and not isinstance(error, RayTaskError)
    return (Cause.LOST if of_ray else Cause.RAISED), text


def _is_echo(text: str) -> bool:
    return any(sign in text.lower() for sign in _OF_OTHERS)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else "it said nothing"
    return f"{type(error).__name__}: {said}"
