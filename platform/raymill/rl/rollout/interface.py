"""What a pool of engines is asked for and gives back, with Ray or without."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Self

from raymill.generate.batch import Completion
from raymill.rl.rollout.batches import Unit
from raymill.rl.rollout.engine import Sampling
from raymill.rl.rollout.failure import (
    NO_WEIGHTS,
    NOT_BEGUN,
    NOT_COLLECTED,
    Incident,
    RolloutError,
)
from raymill.rl.rollout.weights import Digest, NamedTensors, converted


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


class Pool(ABC):
    """Engines that share the work out among them. No call waits for ever.

    `dtype`: what weights are converted to before they are sent.
    """

    def __init__(self, dtype: Literal["fp32", "bf16"]) -> None:
        self._dtype = dtype
        self._version: int | None = None  # of the weights that all engines have
        self._running: Future[Generation] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sync(self, weights: NamedTensors, version: int) -> SyncReport:
        """Bring the policy's weights to every engine; they are converted to the engines' dtype.

        Raises:
            RolloutError: an engine doesn't hold what was sent, or a generation is under way.
        """
        self._refuse_unless_idle()
        started = perf_counter()
        self._version = None
        sent = Digest()
        incidents = self._bring(sent.passing(converted(weights, self._dtype)), sent, version)
        self._version = version
        seconds = perf_counter() - started
        return SyncReport(version, seconds, sent.bytes, sent.hexdigest(), tuple(incidents))

    def generate(self, units: Sequence[Unit], sampling: Sampling) -> Generation:
        """`start_generate` and `collect`."""
        self.start_generate(units, sampling)
        return self.collect()

    def start_generate(self, units: Sequence[Unit], sampling: Sampling) -> None:
        """Begin; the caller may train meanwhile.

        Raises:
            RolloutError: no weights have been brought, or another generation hasn't been collected.
        """
        self._refuse_unless_idle()
        if self._version is None:
            raise RolloutError(NO_WEIGHTS)
        self._running = self._begin(tuple(units), sampling, self._version)

    def collect(self) -> Generation:
        """Wait for what `start_generate` began.

        Raises:
            RolloutError: nothing was begun, or a unit couldn't be sampled.
        """
        if self._running is None:
            raise RolloutError(NOT_BEGUN)
        running, self._running = self._running, None
        return running.result()

    def close(self) -> None:
        """End what holds engines; a second call does nothing."""
        self._version = None

    @abstractmethod
    def _bring(self, weights: NamedTensors, sent: Digest, version: int) -> Sequence[Incident]:
        """Give every engine `weights`; `sent` has their digest once they have gone through."""

    @abstractmethod
    def _begin(
        self, units: tuple[Unit, ...], sampling: Sampling, version: int
    ) -> Future[Generation]:
        """Sample units, or begin to."""

    def _refuse_unless_idle(self) -> None:
        if self._running is not None:
            raise RolloutError(NOT_COLLECTED)
