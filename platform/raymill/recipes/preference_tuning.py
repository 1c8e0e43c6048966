"""Direct preference optimization: a parent model learns to prefer the answers that people preferred."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from raymill.engine.batches import BatchBuilder
from raymill.engine.build_models import (
    build_reference,
    flops_per_token,
    parent_folder,
    plan_policy,
    seeded_token_ids,
)
from raymill.engine.evaluation import Evaluator
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.engine.held_out_pairs import HeldOutPairs
from raymill.engine.learner import Learner
from raymill.engine.recipe import ParentWork, Recipe
from raymill.engine.reference import CachedReference, LiveReference
from raymill.model.blueprint import Blueprint
from raymill.objective.pairs import PreferredAnswers, Reference
from raymill.objective.preferences import NEEDS_REFERENCE
from raymill.schema.jobs import DpoJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PreferenceTuning(Recipe[DpoJob]):
    """See `Recipe`."""

    def plan_model(self, fresh: bool) -> Blueprint:
        from raymill.model.parent import switch_dropout_off

        blueprint = plan_policy(self.resolved, self.job, self.prepared[0])
        # The reference is computed in evaluation mode; with dropout, the policy would differ from it by chance.
        switch_dropout_off(blueprint.model)
        return blueprint

    def objective(self, model: PreTrainedModel, group: WorkerGroup) -> PreferredAnswers:
        loss = self.job.loss
        reference: Reference | None = None
        # Cached log-probabilities need no second model in memory while training.
        if self._cached:
            reference = self._cache
        elif loss.name in NEEDS_REFERENCE:
            frozen = build_reference(self.resolved, self.job, self.prepared[0], model, group)
            reference = LiveReference(frozen, group.device)
        return PreferredAnswers(
            model.get_output_embeddings(),
            loss.name,
            loss.beta,
            loss.label_smoothing,
            loss.gamma,
            reference,
        )

    def parent_work(self) -> ParentWork | None:
        """Compute the reference's log-probabilities of every pair, unless they are on disk."""
        if not self._cached or self._cache.known:
            return None

        def work(model: PreTrainedModel, group: WorkerGroup) -> None:
            batch = self.job.evaluation.batch
            self._cache.compute(model, self.resolved.folders, batch, group)

        return work

    def evaluators(
        self,
        learners: list[Learner],
        batch_builder: BatchBuilder,
        group: WorkerGroup,
        event_log: EventLog | None,
    ) -> list[Evaluator]:
        return [HeldOutPairs.from_prepared(learners[0], self.prepared, self.job.evaluation, group)]

    def flops_per_token(self, model: torch.nn.Module) -> float:
        return flops_per_token(model, self.job.data.sequence_length, 1.0)

    @property
    def _cached(self) -> bool:
        return self.job.loss.name in NEEDS_REFERENCE and self.job.loss.reference == "cached"

    @cached_property
    def _cache(self) -> CachedReference:
        # Where the run's seed draws the embeddings of added tokens, the log-probabilities depend on it too.
        digests = tuple(data.manifest.digest for data in self.prepared)
        draws = bool(seeded_token_ids(parent_folder(self.resolved), self.prepared[0]))
        return CachedReference.open(self.resolved, digests, draws)
