"""What a pool of engines is asked for and gives back, with Ray or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from raymill.generate.batch import Completion
from raymill.rollout.engine import Sampling
from raymill.rollout.failure import Incident
from raymill.rollout.units import Unit
from raymill.rollout.weights import NamedTensors


@dataclass(frozen=True)
class UnitResult:
    """A unit's answers, and the version of the weights that made them."""

    unit: Unit
    completions: tuple[Completion, ...]
    version: int


@dataclass(frozen=True)
class Generation:
    """All units' results in the order of the plan."""

    results: tuple[UnitResult, ...]
    seconds: float
    incidents: tuple[Incident, ...] = ()


@dataclass(frozen=True)
class SyncReport:
    """Weights that every engine has acknowledged."""

    version: int
    seconds: float
    bytes: int
    digest: str
    incidents: tuple[Incident, ...] = ()


class Pool(Protocol):
    """Engines that share the work out among them. No call waits for ever."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def sync(self, weights: NamedTensors, version: int) -> SyncReport:
        """Bring the policy's weights to every engine; they are converted to the engines' dtype.

        Raises:
            RolloutError: an engine doesn't hold what was sent, or a generation is under way.
        """
        ...

    def generate(self, units: Sequence[Unit], sampling: Sampling) -> Generation:
        """`start_generate` and `collect`."""
        ...

    def start_generate(self, units: Sequence[Unit], sampling: Sampling) -> None:
        """Begin; the caller may train meanwhile.

        Raises:
            RolloutError: no weights have been brought, or another generation hasn't been collected.
        """
        ...

    def collect(self) -> Generation:
        """Wait for what `start_generate` began.

        Raises:
            RolloutError: nothing was begun, or a unit couldn't be sampled.
        """
        ...

    def close(self) -> None:
        """End what holds engines; a second call does nothing."""
        ...
