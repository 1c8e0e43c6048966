"""One engine inside this process: no Ray, nothing at the same time, the same results bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Self

from raymill.rollout.engine import EngineSpec, Sampling
from raymill.rollout.failure import (
    NO_WEIGHTS,
    NOT_BEGUN,
    NOT_COLLECTED,
    RolloutError,
    require_digest,
)
from raymill.rollout.generation import Generation, SyncReport, UnitResult
from raymill.rollout.units import Unit
from raymill.rollout.weights import Digest, NamedTensors, buckets, converted


class LocalPool:
    """See `Pool`. The engine has a copy of the weights of its own."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._engine = spec.build()
        self._version: int | None = None
        self._ready: Generation | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sync(self, weights: NamedTensors, version: int) -> SyncReport:
        """See `Pool`."""
        self._refuse_unless_idle()
        started = perf_counter()
        self._version = None
        sent = Digest()
        self._engine.load(buckets(sent.passing(converted(weights, self._spec.dtype))))
        digest = sent.hexdigest()
        require_digest(self._engine.digest(), digest, "this process")
        self._version = version
        return SyncReport(version, perf_counter() - started, sent.bytes, digest)

    def generate(self, units: Sequence[Unit], sampling: Sampling) -> Generation:
        """See `Pool`."""
        self.start_generate(units, sampling)
        return self.collect()

    def start_generate(self, units: Sequence[Unit], sampling: Sampling) -> None:
        """See `Pool`; all the work is done here."""
        self._refuse_unless_idle()
        if self._version is None:
            raise RolloutError(NO_WEIGHTS)
        started = perf_counter()
        results = [
            UnitResult(
                unit,
                tuple(self._engine.generate(unit.prompts, sampling, unit.seeds)),
                self._version,
            )
            for unit in units
        ]
        self._ready = Generation(tuple(results), perf_counter() - started)

    def collect(self) -> Generation:
        """See `Pool`."""
        if self._ready is None:
            raise RolloutError(NOT_BEGUN)
        ready, self._ready = self._ready, None
        return ready

    def close(self) -> None:
        """See `Pool`."""
        self._version = None

    def _refuse_unless_idle(self) -> None:
        if self._ready is not None:
            raise RolloutError(NOT_COLLECTED)
