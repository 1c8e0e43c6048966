"""Held-out pairs: how often a model prefers the answer that people preferred, and how sure it is of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raymill.data.store.manifest import PreparedData
from raymill.data.store.validation import ValidationSet
from raymill.engine.agreement import each_on_all_ranks
from raymill.engine.evaluation import EvalPoint, evaluating
from raymill.engine.group import WorkerGroup
from raymill.engine.learner import Learner, means
from raymill.engine.parents import held_out_sets
from raymill.evaluate.calibration import Bins
from raymill.objective.objective import MetricSums
from raymill.objective.pairs import PairObjective
from raymill.schema.sections import EvaluationConfig

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeldOutPairs:
    """Loss, accuracy and calibration over fixed sets of pairs, each shared out over the ranks.

    `sets` are (name, rows); with several, the figures of all together carry no name.
    """

    objective: PairObjective
    sets: tuple[tuple[str, ValidationSet], ...]
    every: int  # steps; also before the first and after the last

    @classmethod
    def of(
        cls,
        learner: Learner,
        prepared: Sequence[PreparedData],
        settings: EvaluationConfig,
        group: WorkerGroup,
    ) -> HeldOutPairs:
        """What a learner of pairs makes of the held-out ones of all sources."""
        objective = learner.objective
        assert isinstance(objective, PairObjective)
        return cls(objective, held_out_sets(prepared, settings, group), settings.every)

    def measure(self, model: Any, group: WorkerGroup, eval_point: EvalPoint) -> dict[str, float]:
        """See `Evaluator`."""
        if not (eval_point.first or eval_point.due(self.every)):
            return {}
        figures: dict[str, float] = {}
        together, all_bins = MetricSums(), Bins()
        for name, rows in self.sets:
            metric_sums, bins = self._measured(model, rows, group)
            sums = metric_sums.drain()
            for key, (total, weight) in sums.items():
                together.add(key, total, weight)
            all_bins = all_bins + bins
            if len(self.sets) > 1:
                named = {f"pairs/{name}/{key}": value for key, value in sums.items()}
                figures |= means(named, group)
        figures |= means({f"pairs/{key}": value for key, value in together.drain().items()}, group)
        summed = Bins.from_sums(group.sum(*all_bins.sums()))
        return {**figures, "pairs/calibration_error": summed.error}

    def _measured(
        self, model: Any, rows_: ValidationSet, group: WorkerGroup
    ) -> tuple[MetricSums, Bins]:
        metric_sums, bins = MetricSums(), Bins()
        with evaluating(model):
            for rows in each_on_all_ranks(group, rows_):
                found = self.objective.compare(model, rows, group.device)
                found.add_to(metric_sums)
                weight = float(found.weight.sum())
                metric_sums.add("loss", (found.loss * found.weight).sum(), weight)
                # What the model says is the probability that the better answer wins (Bradley–Terry).
                chance_P = torch.sigmoid(found.better - found.worse)
                bins = bins + Bins.from_probabilities(_array(chance_P), _array(found.weight))
        return metric_sums, bins


def _array(values: torch.Tensor) -> Floats:
    return values.double().cpu().numpy()
