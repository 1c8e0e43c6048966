"""One exception family, so that a job's entry point can tell "the user must act" from "we have a bug".

Every message says what was expected, what was found, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard


class RaymillError(Exception):
    """Base of every error that Raymill raises on purpose; its message is meant for the user."""

    agreed = False  # whether all ranks of a run raise it, each by itself


class ConfigError(RaymillError):
    """The configuration can't be run. Holds all problems found, not only the first."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        noun = "problem" if count == 1 else "problems"
        lines = "\n".join(f"  {number}. {text}" for number, text in enumerate(self.problems, 1))
        super().__init__(f"{count} {noun} in the configuration:\n{lines}")

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return (ConfigError, (self.problems,))


class DataError(RaymillError):
    """Input text or a prepared shard is missing, damaged, or not what its manifest says."""


class CheckpointError(RaymillError):
    """A checkpoint is missing, damaged, or contradicts the run that wants to resume from it."""


class NonFiniteError(RaymillError):
    """A loss or gradient was NaN or infinite; raised on every rank before the update."""

    agreed = True


class RewindError(RaymillError):
    """The run is to go on from its last checkpoint, past what came after it; raised on every rank."""

    agreed = True


class TrackingError(RaymillError):
    """The tracking server or model registry did not do what was asked; never raised during training."""


class ClusterError(RaymillError):
    """Ray can't be reached, or it hasn't what the job asks for."""


class StorageError(RaymillError):
    """Storage did not do what was asked: an object store, or a file system that a file can't be read from.

    It counts as lost infrastructure: what was to be read is none the worse for it, and is read in a later try.
    """


def ends_run(error: BaseException) -> TypeGuard[RaymillError]:
    """Tell whether another try would meet the same error; storage that is away may be back by then."""
    return isinstance(error, RaymillError) and not isinstance(error, StorageError)
