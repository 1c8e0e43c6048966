"""A reward model as a judge: what it says of whole conversations, token by token as they were sampled.

It runs in actors, as samplers do, or in this process. What shares a batch is decided by the answers alone,
so scores don't depend on the number of actors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from raymill.generate.modes import FIRST_ID, tolerance_of
from raymill.objective.scores import last_scores
from raymill.objective.sequences import padded
from raymill.rl.reward.task import Score, failed
from raymill.rl.rollout.batches import Unit
from raymill.rl.rollout.engine import Sampling
from raymill.rl.rollout.weights import DTYPES, Bucket, Digest

logger = logging.getLogger(__name__)

NO_SAMPLING = Sampling(0, 0.0, 1.0, ())
SCORES_A_BATCH = 32


class SequenceJudge(Protocol):
    """Scores sequences of tokens."""

    def score(self, sequences: Sequence[Sequence[int]]) -> tuple[list[Score], tuple[str, ...]]:
        """A score each, in order; and whoever was lost on the way and replaced.

        Raises:
            RaymillError: they can't be had.
        """
        ...

    def close(self) -> None:
        """End whatever was started."""
        ...


@dataclass(frozen=True)
class RewardModelSpec:
    """How to load a reward model, in whichever process; see `EngineSpec`."""

    folder: str
    dtype: Literal["fp32", "bf16"]
    threads: int
    gpu: bool = False

    def build(self) -> RewardModelEngine:
        """The model, with its weights. Raises DataError, StorageError as `model_of`."""
        from transformers import AutoModelForSequenceClassification

        from raymill.model.quiet import model_of, silence_libraries

        silence_libraries()
        model = model_of(
            AutoModelForSequenceClassification,
            Path(self.folder),
            num_labels=1,
            dtype=DTYPES[self.dtype],
        )
        return RewardModelEngine(model.to("cuda" if self.gpu else "cpu").eval(), self.threads)


class RewardModelEngine:
    """Does units of work as a sampling engine does, but gives numbers. Its weights never change."""

    def __init__(self, model: Any, threads: int) -> None:
        from raymill.model.parent import scalar_head

        self._model, self._threads = model, threads
        config = model.config.get_text_config()
        if config.pad_token_id is None:
            # transformers refuses batches without one; which it is doesn't matter where places are known.
            config.pad_token_id = 0
        self._head = scalar_head(model)
        self._batched: bool | None = None  # until it is tried

    def load(self, buckets: Iterable[Bucket]) -> None:
        """There are none to take over."""
        list(buckets)

    def digest(self) -> str:
        """Of no weights."""
        return Digest().hexdigest()

    def generate(
        self, sequences: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[float]:
        """What the model says at each sequence's last token."""
        torch.set_num_threads(self._threads)
        if self._batched is None:
            self._batched = self._scores_batches()
        batches = [sequences] if self._batched else [[one] for one in sequences]
        return [score for batch in batches for score in self._scores(batch)]

    def _scores_batches(self) -> bool:
        """Tell whether sequences of several lengths have the scores in a batch that they have alone."""
        tried = [list(range(FIRST_ID, FIRST_ID + length)) for length in (9, 2, 5)]
        together = torch.tensor(self._scores(tried))
        alone = torch.tensor([score for one in tried for score in self._scores([one])])
        apart = float((together - alone).norm() / alone.norm().clamp(min=1e-30))
        if apart > tolerance_of(self._model):
            logger.warning(
                f"{type(self._model).__name__} judges sequences one by one, which takes longer: in batches its "
                f"scores differ by {apart:.1e} of their size"
            )
            return False
        return True

    def _scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        tokens_SL, length_S = padded(sequences)
        device = next(self._model.parameters()).device
        with torch.no_grad():
            scores_S = last_scores(self._model, self._head, tokens_SL, length_S - 1, device)
        found: list[float] = scores_S.cpu().tolist()
        return found


def score_units(sequences: Sequence[Sequence[int]]) -> list[Unit]:
    """Sequences by length, so many a batch; a unit's answers are (place among the sequences, 0)."""
    order = sorted(range(len(sequences)), key=lambda place: (-len(sequences[place]), place))
    parts = (order[n : n + SCORES_A_BATCH] for n in range(0, len(order), SCORES_A_BATCH))
    return [
        Unit(
            tuple((place, 0) for place in part),
            tuple(tuple(sequences[place]) for place in part),
            (0,) * len(part),
        )
        for part in parts
    ]


def scores_of(units: Sequence[Unit], values: Sequence[Sequence[float]]) -> list[Score]:
    """The units' numbers in the order of the sequences."""
    found: dict[int, Score] = {}
    for unit, numbers in zip(units, values, strict=True):
        for (place, _), number in zip(unit.answers, numbers, strict=True):
            finite = math.isfinite(number)
            found[place] = Score(number, None, 0.0) if finite else failed(f"not finite: {number}")
    return [found[place] for place in range(len(found))]


class LocalRewardModel:
    """See `SequenceJudge`; in this process."""

    def __init__(self, spec: RewardModelSpec) -> None:
        self._engine = spec.build()

    def score(self, sequences: Sequence[Sequence[int]]) -> tuple[list[Score], tuple[str, ...]]:
        """See `SequenceJudge`."""
        before = torch.get_num_threads()
        units = score_units(sequences)
        try:
            values = [self._engine.generate(u.prompts, NO_SAMPLING, u.seeds) for u in units]
        finally:
            torch.set_num_threads(before)
        return scores_of(units, values), ()

    def close(self) -> None:
        """Nothing was started."""
