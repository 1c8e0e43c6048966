"""Exceptions for which a user must act, apart from those that reveal a bug.

Every message says what was expected, what was found, where, and how to fix it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard


class RaymillError(Exception):
    """Base of every error that Raymill raises on purpose; its message is written for the user."""

    # Whether every rank of a run raises the error, each by itself.
    on_every_rank = False


class ConfigError(RaymillError):
    """Configuration that can't be run. Holds all problems, not only the first."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        noun = "problem" if count == 1 else "problems"
        lines = "\n".join(f"  {number}. {text}" for number, text in enumerate(self.problems, 1))
        super().__init__(f"{count} {noun} in the configuration:\n{lines}")

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return (ConfigError, (self.problems,))


class DataError(RaymillError):
    """Input text or a prepared shard is missing, damaged, or doesn't match its manifest."""


class CheckpointError(RaymillError):
    """A checkpoint is missing, damaged, or contradicts the run that wants to resume from it."""


class NonFiniteError(RaymillError):
    """A loss or gradient is NaN or infinite; raised on every rank before the update."""

    on_every_rank = True


class RewindError(RaymillError):
    """The run must continue from a checkpoint: without the samples after it, or from the one before
    a damaged one; raised on every rank."""

    on_every_rank = True


class TrackingError(RaymillError):
    """The tracking server or model registry failed a request; never raised during training."""


class ClusterError(RaymillError):
    """Ray can't be reached, or lacks the resources that the job needs."""


class GroupError(RaymillError):
    """Ranks can't form their process group; it counts as a lost connection, which may come back."""


class StorageError(RaymillError):
    """Storage failed: an object store, or a file system from which a file can't be read.

    It counts as lost infrastructure: the data itself may be whole, and a later try reads it.
    """


def ends_run(error: BaseException) -> TypeGuard[RaymillError]:
    """Return whether another try would meet the same error, unlike with storage, which may
    recover."""
    return isinstance(error, RaymillError) and not isinstance(error, StorageError)
