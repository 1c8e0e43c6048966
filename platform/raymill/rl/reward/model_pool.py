"""Reward models in Ray actors: the samplers' crew with another engine, so that one that dies or hangs is
named, replaced, and its work given out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from raymill.rl.reward.model import NO_SAMPLING, RewardModelSpec, score_units, scores_of
from raymill.rl.reward.task import Score
from raymill.rl.rollout.actor_pool import ActorPool, Weights
from raymill.rl.rollout.weights import Digest


class RewardModelPool:
    """See `SequenceJudge`. Actors end with the process that made the pool; `places`: see `ActorPool.of`."""

    def __init__(
        self,
        spec: RewardModelSpec,
        *,
        actors: int,
        cpus_per_actor: float,
        gpus_per_actor: float,
        timeout_s: float,
        places: Sequence[Any] = (),
    ) -> None:
        engine: Any = spec  # it builds an engine that gives numbers
        self._actor_pool = ActorPool.of(
            "reward",
            engine,
            actors,
            cpus_per_actor=cpus_per_actor,
            gpus_per_actor=gpus_per_actor,
            timeout_s=timeout_s,
            places=places,
        )
        self._actor_pool.start()
        self._actor_pool.load_weights(Weights((), 0, Digest().hexdigest()))

    def score(self, sequences: Sequence[Sequence[int]]) -> tuple[list[Score], tuple[str, ...]]:
        """See `SequenceJudge`."""
        units = score_units(sequences)
        results, incidents = self._actor_pool.work(units, NO_SAMPLING)
        values = [cast(tuple[float, ...], result.completions) for result in results]
        return scores_of(units, values), tuple(map(str, incidents))

    def close(self) -> None:
        """End the actors."""
        self._actor_pool.shutdown()
