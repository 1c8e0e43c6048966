"""Reward modeling: a parent model with a scalar head learns to score preferred answers higher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from raymill.engine.batches import BatchBuilder
from raymill.engine.build_models import flops_per_token, plan_scalar_policy
from raymill.engine.evaluation import Evaluator
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.engine.held_out_pairs import HeldOutPairs
from raymill.engine.learner import Learner
from raymill.engine.recipe import Recipe
from raymill.model.blueprint import Blueprint
from raymill.objective.pairs import RewardPairs
from raymill.schema.jobs import RewardJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RewardModeling(Recipe[RewardJob]):
    """See `Recipe`."""

    def plan_model(self, fresh: bool) -> Blueprint:
        from raymill.model.parent import switch_dropout_off

        assert self.resolved.model_folder is not None, "a parent is resolved before workers start"
        blueprint, _ = plan_scalar_policy(
            self.resolved, self.job, self.prepared[0], self.resolved.model_folder
        )
        # With dropout, the two scores of a pair would differ by chance.
        switch_dropout_off(blueprint.model)
        return blueprint

    def objective(self, model: PreTrainedModel, group: WorkerGroup) -> RewardPairs:
        from raymill.model.parent import scalar_head

        return RewardPairs(scalar_head(model), self.job.margin_scale, self.job.center_rewards)

    def evaluators(
        self,
        learners: list[Learner],
        batch_builder: BatchBuilder,
        group: WorkerGroup,
        event_log: EventLog | None,
    ) -> list[Evaluator]:
        return [HeldOutPairs.from_prepared(learners[0], self.prepared, self.job.evaluation, group)]

    def flops_per_token(self, model: torch.nn.Module) -> float:
        return flops_per_token(model, self.job.data.sequence_length, 0.0)
