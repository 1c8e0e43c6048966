"""Reward model: scores of whole conversations, on the very tokens that were sampled.

It runs in actors or in this process. Batches are planned from the answers alone, so scores don't depend on the
number of actors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from raymill.generate.modes import FIRST_ID, tolerance_of
from raymill.objective.forward import pad_right, scores_at
from raymill.rl.reward.task import Score, failed_score
from raymill.rl.rollout.engine import Dtype, PromptBatch, Sampling
from raymill.rl.rollout.weights import DTYPES, Digest, TensorBucket

if TYPE_CHECKING:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Engines take sampling settings; a reward model ignores them.
NO_SAMPLING = Sampling(0, 0.0, 1.0, ())
SCORES_PER_BATCH = 32


class SequenceScorer(Protocol):
    """Scorer of token sequences."""

    @property
    def in_process(self) -> bool:
        """True if this process computes the scores."""
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> tuple[list[Score], tuple[str, ...]]:
        """Return a score per sequence, in order, and the incidents: actors that were lost and replaced.

        Raises:
            RaymillError: the sequences can't be scored.
        """
        ...

    def close(self) -> None:
        """End processes that were started."""
        ...


@dataclass(frozen=True)
class RewardModelSpec:
    """Recipe for a reward model, with its weights; see `EngineSpec`."""

    folder: str
    dtype: Dtype
    threads: int
    gpu: bool = False

    def build(self) -> RewardModelEngine:
        """Load the model. Raises DataError and StorageError as `load_hf_model` does."""
        from transformers import AutoModelForSequenceClassification

        from raymill.model.loading import load_hf_model, silence_libraries

        silence_libraries()
        model = load_hf_model(
            AutoModelForSequenceClassification,
            Path(self.folder),
            num_labels=1,
            dtype=DTYPES[self.dtype],
        )
        return RewardModelEngine(model.to("cuda" if self.gpu else "cpu").eval(), self.threads)


class RewardModelEngine:
    """Engine whose results are scores. Its weights never change; see `Engine`."""

    def __init__(self, model: PreTrainedModel, threads: int) -> None:
        from raymill.model.parent import scalar_head

        self._model, self._threads = model, threads
        config = model.config.get_text_config()
        if config.pad_token_id is None:
            # transformers refuses batches without one. Any id will do: scores are taken at known positions.
            config.pad_token_id = 0
        self._head = scalar_head(model)
        # None until it has been tested.
        self._batched: bool | None = None

    def load(self, buckets: Iterable[TensorBucket]) -> None:
        """Accept an empty transfer: there are no weights to replace."""
        list(buckets)

    def digest(self) -> str:
        """Return the digest of no weights."""
        return Digest().hexdigest()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[float]:
        """Return the model's score at each sequence's last token."""
        torch.set_num_threads(self._threads)
        if self._batched is None:
            self._batched = self._test_batches()
        batches = [prompts] if self._batched else [[sequence] for sequence in prompts]
        return [score for batch in batches for score in self._scores(batch)]

    def _test_batches(self) -> bool:
        """Tell whether sequences of several lengths have the same scores in a batch as alone."""
        probes = [list(range(FIRST_ID, FIRST_ID + length)) for length in (9, 2, 5)]
        together = torch.tensor(self._scores(probes))
        alone = torch.tensor([score for probe in probes for score in self._scores([probe])])
        difference = float((together - alone).norm() / alone.norm().clamp(min=1e-30))
        if difference > tolerance_of(self._model):
            logger.warning(
                f"{type(self._model).__name__} judges sequences one by one, which takes longer: in batches its "
                f"scores differ by {difference:.1e} of their size"
            )
            return False
        return True

    def _scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        tokens_BL, length_B = pad_right(sequences)
        device = next(self._model.parameters()).device
        with torch.no_grad():
            scores_B = scores_at(self._model, self._head, tokens_BL, length_B - 1, device)
        scores: list[float] = scores_B.cpu().tolist()
        return scores


def plan_scores(sequences: Sequence[Sequence[int]]) -> list[PromptBatch]:
    """Plan batches of sequences by length; their `answers` are (index of the sequence, 0)."""
    order = sorted(range(len(sequences)), key=lambda index: (-len(sequences[index]), index))
    parts = (order[n : n + SCORES_PER_BATCH] for n in range(0, len(order), SCORES_PER_BATCH))
    return [
        PromptBatch(
            tuple((index, 0) for index in part),
            tuple(tuple(sequences[index]) for index in part),
            (0,) * len(part),
        )
        for part in parts
    ]


def scores_in_order(
    batches: Sequence[PromptBatch], values: Sequence[Sequence[float]]
) -> list[Score]:
    """Return the values of all batches as scores, in the order of the sequences."""
    scores: dict[int, Score] = {}
    for batch, numbers in zip(batches, values, strict=True):
        for (index, _), number in zip(batch.answers, numbers, strict=True):
            finite = math.isfinite(number)
            scores[index] = (
                Score(number, None, 0.0) if finite else failed_score(f"not finite: {number}")
            )
    return [scores[index] for index in range(len(scores))]


class LocalRewardModel:
    """Reward model in this process; see `SequenceScorer`."""

    in_process = True

    def __init__(self, spec: RewardModelSpec) -> None:
        self._engine = spec.build()

    def score(self, sequences: Sequence[Sequence[int]]) -> tuple[list[Score], tuple[str, ...]]:
        """See `SequenceScorer`."""
        # The process may be a trainer with its own number of threads, which the engine changes.
        threads = torch.get_num_threads()
        batches = plan_scores(sequences)
        try:
            values = [self._engine.generate(b.prompts, NO_SAMPLING, b.seeds) for b in batches]
        finally:
            torch.set_num_threads(threads)
        return scores_in_order(batches, values), ()

    def close(self) -> None:
        """Do nothing: no process was started."""


class RewardModelPool:
    """Reward models in Ray actors; see `SequenceScorer`.

    Actors end with the process that made the pool. One that dies or hangs is named and replaced, and its
    batch is given to another. `scheduling_strategies`: see `ActorPool.from_spec`.
    """

    in_process = False

    def __init__(
        self,
        spec: RewardModelSpec,
        *,
        actors: int,
        cpus_per_actor: float,
        gpus_per_actor: float,
        timeout_s: float,
        scheduling_strategies: Sequence[PlacementGroupSchedulingStrategy] = (),
    ) -> None:
        # Imported late: a reward model in this process needs no Ray.
        from raymill.rl.rollout.actor_pool import ActorPool, Weights

        self._actor_pool: ActorPool[float] = ActorPool.from_spec(
            "reward",
            spec,
            actors,
            cpus_per_actor=cpus_per_actor,
            gpus_per_actor=gpus_per_actor,
            timeout_s=timeout_s,
            scheduling_strategies=scheduling_strategies,
        )
        self._actor_pool.start()
        self._actor_pool.load_weights(Weights((), 0, Digest().hexdigest()))

    def score(self, sequences: Sequence[Sequence[int]]) -> tuple[list[Score], tuple[str, ...]]:
        """See `SequenceScorer`."""
        batches = plan_scores(sequences)
        generation = self._actor_pool.run(batches, NO_SAMPLING)
        values = [result.completions for result in generation.results]
        return scores_in_order(batches, values), tuple(map(str, generation.incidents))

    def close(self) -> None:
        """End the actors."""
        self._actor_pool.shutdown()
