"""Evaluation on held-out pairs: how often a model prefers the better answer, and how well it is calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from raymill.data.store.manifest import PreparedData
from raymill.data.store.validation import ValidationSet
from raymill.engine.batches import Floats
from raymill.engine.build_models import open_held_out_sets
from raymill.engine.evaluation import EvalPoint, evaluating
from raymill.engine.group import WorkerGroup, iterate_on_all_ranks
from raymill.engine.learner import Learner
from raymill.engine.step_sums import StepSums, means
from raymill.evaluate.calibration import Bins
from raymill.objective.objective import MetricSums
from raymill.objective.pairs import PairObjective
from raymill.schema.sections import EvaluationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class HeldOutPairs:
    """Loss, accuracy and calibration over fixed sets of pairs, which are shared out over the ranks.

    `sets` are (name, rows); with several, the metrics over all of them carry no name.
    """

    objective: PairObjective
    sets: tuple[tuple[str, ValidationSet], ...]
    every: int  # steps; also before the first and after the last

    @classmethod
    def from_prepared(
        cls,
        learner: Learner,
        prepared: Sequence[PreparedData],
        settings: EvaluationConfig,
        group: WorkerGroup,
    ) -> HeldOutPairs:
        """Open the held-out pairs of all sources, for a learner of pairs; collective."""
        objective = learner.objective
        assert isinstance(objective, PairObjective), "held-out pairs need an objective of pairs"
        return cls(objective, open_held_out_sets(prepared, settings, group), settings.every)

    def measure(
        self, model: PreTrainedModel, group: WorkerGroup, eval_point: EvalPoint
    ) -> dict[str, float]:
        """See `Evaluator`."""
        if not (eval_point.first or eval_point.due(self.every)):
            return {}
        sums: dict[str, list[float]] = {}
        # Over all sets every pair counts alike, so sums are added and not means.
        together, all_bins = MetricSums(), Bins()
        for name, rows in self.sets:
            metric_sums, bins = self._measure_set(model, rows, group)
            of_set = metric_sums.drain()
            for key, (total, weight) in of_set.items():
                together.add(f"pairs/{key}", total, weight)
            all_bins = all_bins + bins
            if len(self.sets) > 1:
                sums |= {f"pairs/{name}/{key}": value for key, value in of_set.items()}
        sums |= together.drain()
        reduced = StepSums(group).reduce({**sums, "bins": all_bins.sums()})
        summed = Bins.from_sums(reduced.pop("bins"))
        return {**means(reduced), "pairs/calibration_error": summed.error}

    def _measure_set(
        self, model: PreTrainedModel, rows: ValidationSet, group: WorkerGroup
    ) -> tuple[MetricSums, Bins]:
        metric_sums, bins = MetricSums(), Bins()
        with evaluating(model):
            for batch in iterate_on_all_ranks(group, rows):
                pairs = self.objective.compare(model, batch, group.device)
                pairs.add_to(metric_sums)
                weight = float(pairs.weight.sum())
                metric_sums.add("loss", (pairs.loss * pairs.weight).sum(), weight)
                # The probability that the better answer wins, by the model's scores (Bradley and Terry 1952).
                chance_P = torch.sigmoid(pairs.better - pairs.worse)
                bins = bins + Bins.from_probabilities(_array(chance_P), _array(pairs.weight))
        return metric_sums, bins


def _array(values: torch.Tensor) -> Floats:
    return values.double().cpu().numpy()
