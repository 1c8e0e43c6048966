"""One engine inside this process: no Ray, nothing at the same time, the same results bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from time import perf_counter

from raymill.rl.rollout.batches import Unit
from raymill.rl.rollout.engine import EngineSpec, Sampling
from raymill.rl.rollout.failure import Incident, require_digest
from raymill.rl.rollout.interface import Generation, Pool, UnitResult
from raymill.rl.rollout.weights import Digest, NamedTensors, buckets


class LocalPool(Pool):
    """See `Pool`. The engine has a copy of the weights of its own; sampling begins and ends at once."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec.dtype)
        self._engine = spec.build()

    def _bring(self, weights: NamedTensors, sent: Digest, version: int) -> Sequence[Incident]:
        self._engine.load(buckets(weights))
        require_digest(self._engine.digest(), sent.hexdigest(), "this process")
        return ()

    def _begin(
        self, units: tuple[Unit, ...], sampling: Sampling, version: int
    ) -> Future[Generation]:
        started = perf_counter()
        results = tuple(
            UnitResult(
                unit, tuple(self._engine.generate(unit.prompts, sampling, unit.seeds)), version
            )
            for unit in units
        )
        ready = Future[Generation]()
        ready.set_result(Generation(results, perf_counter() - started))
        return ready
