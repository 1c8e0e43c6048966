"""Pools of engines: one engine in this process, or many in Ray actors, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Self

from raymill.errors import ClusterError
from raymill.generate.batch import Completion
from raymill.rl.rollout.engine import (
    START_TIMEOUT_S,
    BatchAnswers,
    BatchResult,
    Dtype,
    EngineSpec,
    Generation,
    Incident,
    OnResult,
    PromptBatch,
    RolloutAnswer,
    RolloutError,
    Sampling,
    require_digest,
)
from raymill.rl.rollout.weights import BUCKET_BYTES, Digest, NamedTensors, buckets, converted

if TYPE_CHECKING:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

# Longer than the sampling thread needs to notice that its actors are gone.
JOIN_S = 10.0


@dataclass(frozen=True)
class SyncReport:
    """Transfer of weights that every engine has acknowledged."""

    version: int
    seconds: float
    bytes: int
    digest: str
    incidents: tuple[Incident, ...] = ()


class Pool(ABC):
    """Engines that share a step's batches among them. Every wait has a time limit.

    `dtype`: type that weights are converted to before they are sent.
    """

    def __init__(self, dtype: Dtype) -> None:
        self._dtype = dtype
        # Version of the weights that all engines have.
        self._version: int | None = None
        # Waits for the generation that was started, and returns it.
        self._pending: Callable[[], Generation[RolloutAnswer]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sync(self, weights: NamedTensors, version: int) -> SyncReport:
        """Send the policy's weights to every engine, converted to the engines' dtype.

        Raises:
            RolloutError: an engine doesn't hold the weights that were sent, or a generation is running.
        """
        self._require_idle()
        started = perf_counter()
        self._version = None
        sent = Digest()
        incidents = self._load(sent.passing(converted(weights, self._dtype)), sent, version)
        self._version = version
        seconds = perf_counter() - started
        return SyncReport(version, seconds, sent.bytes, sent.hexdigest(), tuple(incidents))

    def generate(
        self, batches: Sequence[PromptBatch], sampling: Sampling
    ) -> Generation[RolloutAnswer]:
        """Sample batches and wait for the results."""
        self.start_generate(batches, sampling)
        return self.collect()

    @abstractmethod
    def start_generate(
        self,
        batches: Sequence[PromptBatch],
        sampling: Sampling,
        on_result: OnResult[RolloutAnswer] | None = None,
    ) -> None:
        """Start sampling; the caller may train in the meantime. `on_result` gets each batch as it arrives.

        Raises:
            RolloutError: there are no weights, or another generation hasn't been collected.
        """

    def collect(self) -> Generation[RolloutAnswer]:
        """Wait for the generation that `start_generate` started.

        Raises:
            RolloutError: nothing was started, or a batch couldn't be sampled.
        """
        if self._pending is None:
            raise RolloutError("nothing is being generated; call start_generate first")
        pending, self._pending = self._pending, None
        return pending()

    def close(self) -> None:
        """End the engines; a second call does nothing."""
        self._version = None

    @abstractmethod
    def _load(self, weights: NamedTensors, sent: Digest, version: int) -> Sequence[Incident]:
        """Load `weights` into every engine; `sent` holds their digest once they have been iterated."""

    def _require_idle(self) -> None:
        if self._pending is not None:
            raise RolloutError("a generation is running; collect it first")

    def _require_weights(self) -> int:
        if self._version is None:
            raise RolloutError(
                "the samplers have no weights, or not all of them took over the last; call sync first"
            )
        return self._version


class LocalPool(Pool):
    """One engine inside this process, without Ray: the same results as any `RolloutPool`, bit for bit.

    The engine has its own copy of the weights; `start_generate` only returns when sampling is finished.
    """

    def __init__(self, spec: EngineSpec[Completion]) -> None:
        super().__init__(spec.dtype)
        self._engine = spec.build()

    def start_generate(
        self,
        batches: Sequence[PromptBatch],
        sampling: Sampling,
        on_result: OnResult[RolloutAnswer] | None = None,
    ) -> None:
        """See `Pool`."""
        self._require_idle()
        version, started = self._require_weights(), perf_counter()
        results: list[BatchResult[RolloutAnswer]] = []
        for number, batch in enumerate(batches):
            completions = self._engine.generate(batch.prompts, sampling, batch.seeds)
            answers = BatchAnswers.from_completions(completions)
            results.append(BatchResult(batch, answers, version))
            if on_result is not None:
                on_result(number, results[-1])
        generation = Generation(tuple(results), perf_counter() - started)
        self._pending = lambda: generation

    def _load(self, weights: NamedTensors, sent: Digest, version: int) -> Sequence[Incident]:
        self._engine.load(buckets(weights))
        require_digest(self._engine.digest(), sent.hexdigest(), "this process")
        return ()


class RolloutPool(Pool):
    """Engines in Ray actors, which end with the process that made the pool.

    Weights are put into the object store once per version: an actor that replaces another gets the same ones,
    whatever the policy has become in the meantime. `timeout_s`: for a batch, and for loading weights into an
    actor; `scheduling_strategies`: see `ActorPool.from_spec`.

    Raises:
        ClusterError: the cluster lacks the resources of the actors.
        RolloutError: an actor doesn't start.
        ConfigError: no engine can be built.
    """

    def __init__(
        self,
        spec: EngineSpec[Completion],
        *,
        actors: int,
        cpus_per_actor: float,
        gpus_per_actor: float = 0.0,
        timeout_s: float,
        scheduling_strategies: Sequence[PlacementGroupSchedulingStrategy] = (),
        start_timeout_s: float = START_TIMEOUT_S,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        # Imported late: pools without actors need no Ray.
        import ray

        from raymill.rl.rollout.actor_pool import ActorPool

        total = ray.cluster_resources()
        for name, amount in {
            "CPU": actors * cpus_per_actor,
            "GPU": actors * gpus_per_actor,
        }.items():
            if total.get(name, 0.0) < amount:
                raise ClusterError(
                    f"rollout.actors={actors} need {amount:g} {name}s, the cluster has "
                    f"{total.get(name, 0.0):g}; ask for fewer actors or a larger cluster"
                )
        super().__init__(spec.dtype)
        self._bucket_bytes = bucket_bytes
        # One thread runs the actor pool while the caller trains.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout")
        self._actor_pool = ActorPool[RolloutAnswer].from_spec(
            "rollout",
            spec,
            actors,
            cpus_per_actor=cpus_per_actor,
            gpus_per_actor=gpus_per_actor,
            timeout_s=timeout_s,
            start_timeout_s=start_timeout_s,
            scheduling_strategies=scheduling_strategies,
        )
        self._actor_pool.start()

    def start_generate(
        self,
        batches: Sequence[PromptBatch],
        sampling: Sampling,
        on_result: OnResult[RolloutAnswer] | None = None,
    ) -> None:
        """See `Pool`."""
        self._require_idle()
        self._require_weights()
        self._future = self._executor.submit(
            self._actor_pool.run, tuple(batches), sampling, on_result=on_result
        )
        self._pending = self._future.result

    def close(self) -> None:
        """See `Pool`."""
        super().close()
        self._actor_pool.shutdown()
        self._executor.shutdown(wait=False)
        if self._pending is not None:
            wait([self._future], JOIN_S)

    def _load(self, weights: NamedTensors, sent: Digest, version: int) -> Sequence[Incident]:
        import ray

        from raymill.rl.rollout.actor_pool import Weights

        self._actor_pool.drop_weights()
        refs = tuple(ray.put(bucket) for bucket in buckets(weights, self._bucket_bytes))
        return self._actor_pool.load_weights(Weights(refs, version, sent.hexdigest()))
