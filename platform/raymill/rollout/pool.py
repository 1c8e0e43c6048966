"""Sampling on many actors, wherever Ray has room for them.

Weights are put into the object store once and stay there: an actor that replaces another gets the same
ones, whatever the policy has become meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from time import perf_counter
from typing import Any, Self

import ray

from raymill.errors import ClusterError
from raymill.rollout.actor import SamplingActor
from raymill.rollout.crew import Crew, Weights
from raymill.rollout.engine import EngineSpec, Sampling
from raymill.rollout.failure import NO_WEIGHTS, NOT_BEGUN, NOT_COLLECTED, RolloutError
from raymill.rollout.generation import Generation, SyncReport
from raymill.rollout.units import Unit
from raymill.rollout.weights import BUCKET_BYTES, Digest, NamedTensors, buckets, converted

JOIN_S = 10.0  # it notices within half a second that the actors are gone
START_TIMEOUT_S = 300.0  # for a place in the cluster, and for importing libraries there


class RolloutPool:
    """See `Pool`. Actors end with the process that made the pool.

    `timeout_s`: for a unit, and for bringing weights to an actor; `placement`: a scheduling strategy of
    Ray's, as in "SPREAD" or a PlacementGroupSchedulingStrategy.

    Raises:
        ClusterError: the cluster hasn't what the actors need.
        RolloutError: an actor doesn't start.
        ConfigError: no engine can be built.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        actors: int,
        cpus_per_actor: float,
        gpus_per_actor: float = 0.0,
        timeout_s: float,
        placement: Any = "DEFAULT",
        start_timeout_s: float = START_TIMEOUT_S,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        _check_capacity(actors, cpus_per_actor, gpus_per_actor)
        remote = ray.remote(SamplingActor).options(
            num_cpus=cpus_per_actor,
            num_gpus=gpus_per_actor,
            max_restarts=0,  # it would come back without weights
            max_task_retries=0,
            scheduling_strategy=placement,
        )
        self._dtype, self._bucket_bytes = spec.dtype, bucket_bytes
        self._crew = Crew(
            lambda: remote.remote(spec, timeout_s),
            actors,
            timeout_s=timeout_s,
            start_timeout_s=start_timeout_s,
        )
        self._version: int | None = None
        self._running: Future[Generation] | None = None
        self._thread: threading.Thread | None = None
        self._crew.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sync(self, weights: NamedTensors, version: int) -> SyncReport:
        """See `Pool`."""
        self._refuse_unless_idle()
        started = perf_counter()
        self._version = None
        self._crew.drop_weights()
        sent = Digest()
        passing = sent.passing(converted(weights, self._dtype))
        refs = tuple(ray.put(bucket) for bucket in buckets(passing, self._bucket_bytes))
        digest = sent.hexdigest()
        incidents = self._crew.bring(Weights(refs, version, digest))
        self._version = version
        return SyncReport(version, perf_counter() - started, sent.bytes, digest, tuple(incidents))

    def generate(self, units: Sequence[Unit], sampling: Sampling) -> Generation:
        """See `Pool`."""
        self.start_generate(units, sampling)
        return self.collect()

    def start_generate(self, units: Sequence[Unit], sampling: Sampling) -> None:
        """See `Pool`; a thread deals the units out."""
        self._refuse_unless_idle()
        if self._version is None:
            raise RolloutError(NO_WEIGHTS)
        self._running = running = Future[Generation]()
        self._thread = threading.Thread(
            target=self._generate, args=(running, tuple(units), sampling), daemon=True
        )
        self._thread.start()

    def collect(self) -> Generation:
        """See `Pool`. The thread's own waits all have limits."""
        if self._running is None:
            raise RolloutError(NOT_BEGUN)
        running, self._running = self._running, None
        return running.result()

    def close(self) -> None:
        """See `Pool`."""
        self._version = None
        self._crew.disband()
        if self._thread is not None:
            self._thread.join(JOIN_S)

    def _generate(
        self, running: Future[Generation], units: Sequence[Unit], sampling: Sampling
    ) -> None:
        started = perf_counter()
        try:
            results, incidents = self._crew.work(units, sampling)
        except BaseException as error:  # noqa: BLE001
            running.set_exception(error)
        else:
            seconds = perf_counter() - started
            running.set_result(Generation(tuple(results), seconds, tuple(incidents)))

    def _refuse_unless_idle(self) -> None:
        if self._running is not None:
            raise RolloutError(NOT_COLLECTED)


def _check_capacity(actors: int, cpus: float, gpus: float) -> None:
    total = ray.cluster_resources()
    for name, amount in {"CPU": actors * cpus, "GPU": actors * gpus}.items():
        if total.get(name, 0.0) < amount:
            raise ClusterError(
                f"rollout.actors={actors} need {amount:g} {name}s, the cluster has "
                f"{total.get(name, 0.0):g}; ask for fewer actors or a larger cluster"
            )
