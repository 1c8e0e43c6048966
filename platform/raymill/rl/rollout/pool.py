"""Sampling on many actors, wherever Ray has room for them.

Weights are put into the object store once and stay there: an actor that replaces another gets the same
ones, whatever the policy has become meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from time import perf_counter
from typing import Any

import ray

from raymill.errors import ClusterError
from raymill.rl.rollout.actor_pool import START_TIMEOUT_S, ActorPool, Weights
from raymill.rl.rollout.batches import Unit
from raymill.rl.rollout.engine import EngineSpec, Sampling
from raymill.rl.rollout.failure import Incident
from raymill.rl.rollout.interface import Generation, Pool
from raymill.rl.rollout.weights import BUCKET_BYTES, Digest, NamedTensors, buckets

JOIN_S = 10.0  # it notices within half a second that the actors are gone


class RolloutPool(Pool):
    """See `Pool`. Actors end with the process that made the pool.

    `timeout_s`: for a unit, and for bringing weights to an actor; `places`: see `ActorPool.of`.

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
        places: Sequence[Any] = (),
        start_timeout_s: float = START_TIMEOUT_S,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        _check_capacity(actors, cpus_per_actor, gpus_per_actor)
        super().__init__(spec.dtype)
        self._bucket_bytes = bucket_bytes
        self._thread: threading.Thread | None = None
        self._actor_pool = ActorPool.of(
            "rollout",
            spec,
            actors,
            cpus_per_actor=cpus_per_actor,
            gpus_per_actor=gpus_per_actor,
            timeout_s=timeout_s,
            start_timeout_s=start_timeout_s,
            places=places,
        )
        self._actor_pool.start()

    def close(self) -> None:
        """See `Pool`."""
        super().close()
        self._actor_pool.shutdown()
        if self._thread is not None:
            self._thread.join(JOIN_S)

    def _bring(self, weights: NamedTensors, sent: Digest, version: int) -> Sequence[Incident]:
        self._actor_pool.drop_weights()
        refs = tuple(ray.put(bucket) for bucket in buckets(weights, self._bucket_bytes))
        return self._actor_pool.load_weights(Weights(refs, version, sent.hexdigest()))

    def _begin(
        self, units: tuple[Unit, ...], sampling: Sampling, version: int
    ) -> Future[Generation]:
        """A thread deals the units out; its own waits all have limits."""
        running = Future[Generation]()
        self._thread = threading.Thread(
            target=self._generate, args=(running, units, sampling), daemon=True
        )
        self._thread.start()
        return running

    def _generate(
        self, running: Future[Generation], units: Sequence[Unit], sampling: Sampling
    ) -> None:
        started = perf_counter()
        try:
            results, incidents = self._actor_pool.work(units, sampling)
        except BaseException as error:  # noqa: BLE001
            running.set_exception(error)
        else:
            seconds = perf_counter() - started
            running.set_result(Generation(tuple(results), seconds, tuple(incidents)))


def _check_capacity(actors: int, cpus: float, gpus: float) -> None:
    total = ray.cluster_resources()
    for name, amount in {"CPU": actors * cpus, "GPU": actors * gpus}.items():
        if total.get(name, 0.0) < amount:
            raise ClusterError(
                f"rollout.actors={actors} need {amount:g} {name}s, the cluster has "
                f"{total.get(name, 0.0):g}; ask for fewer actors or a larger cluster"
            )
