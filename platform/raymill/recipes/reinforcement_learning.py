"""Reinforcement learning: a parent model learns from its own answers, by their rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from raymill.data.text.control_tokens import ControlTokens
from raymill.engine.batches import BatchBuilder
from raymill.engine.build_models import (
    build_reference,
    flops_per_token,
    plan_policy,
    plan_scalar_policy,
)
from raymill.engine.evaluation import Evaluator
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup, on_all_ranks, on_rank_zero
from raymill.engine.learner import Learner
from raymill.engine.materialize import CRITIC
from raymill.engine.recipe import LearnerSpec, Recipe
from raymill.model.blueprint import Blueprint
from raymill.model.values import Held
from raymill.rl.backend import start_rollout_backend
from raymill.rl.collector import RolloutCollector
from raymill.rl.evaluation import HeldOutPrompts
from raymill.rl.objective import Critic, PolicyGradient
from raymill.rl.rollout.engine import Sampling
from raymill.rl.rollout_backend import RolloutBackend
from raymill.rl.step import RolloutStep
from raymill.schema.jobs import RlhfJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Reinforcement(Recipe[RlhfJob]):
    """See `Recipe`."""

    @property
    def samples(self) -> bool:
        return self.job.rollout.engine == "transformers"

    def learners(self) -> list[LearnerSpec]:
        policy = super().learners()
        if self.resolved.rl is None or self.resolved.rl.critic_folder is None:
            return policy
        rate = self.job.critic.learning_rate
        return [*policy, LearnerSpec(self.plan_critic, self.critic_objective, rate, CRITIC)]

    def plan_model(self, fresh: bool) -> Blueprint:
        from raymill.model.parent import switch_dropout_off

        blueprint = plan_policy(self.resolved, self.job, self.prepared[0])
        # The old policy's log-probabilities are computed in evaluation mode; with dropout, the ratio to
        # them wouldn't be 1 before an update.
        switch_dropout_off(blueprint.model)
        return blueprint

    def objective(self, model: PreTrainedModel, group: WorkerGroup) -> PolicyGradient:
        return PolicyGradient(
            model.get_output_embeddings(),
            self.job.algorithm,
            self.job.rollout.temperature,
            self.job.rollout.max_new_tokens,
        )

    def plan_critic(self, fresh: bool) -> Blueprint:
        """Plan the value model: the reward model, the parent, or another model with a scalar head."""
        from raymill.model.parent import scalar_head, switch_dropout_off

        assert self.resolved.rl is not None, "reinforcement learning without its resolved part"
        folder = self.resolved.rl.critic_folder
        assert folder is not None, "a critic without initial weights"
        blueprint, had_head = plan_scalar_policy(self.resolved, self.job, self.prepared[0], folder)
        # The old values, to which new ones are clipped, are computed in evaluation mode.
        switch_dropout_off(blueprint.model)
        if not had_head:
            # A new head estimates 0 for every state, instead of noise.
            for parameter in scalar_head(blueprint.model).parameters():
                blueprint.values[parameter] = Held(torch.zeros(parameter.shape))
        return blueprint

    def critic_objective(self, model: PreTrainedModel, group: WorkerGroup) -> Critic:
        """Return the value loss."""
        from raymill.model.parent import scalar_head

        return Critic(scalar_head(model), self.job.algorithm.value_clip)

    def batch_builder(
        self, learners: list[Learner], group: WorkerGroup, event_log: EventLog | None
    ) -> BatchBuilder:
        job, rollout = self.job, self.job.rollout
        policy, prepared = learners[0].model, self.prepared[0]
        parent = self.resolved.model_folder
        tokens = on_all_ranks(group, lambda: ControlTokens.from_prepared(prepared, parent))
        stops = tuple(sorted(tokens.stops))
        collector = RolloutCollector(
            model=policy,
            group=group,
            sampling=Sampling(
                rollout.max_new_tokens, rollout.temperature, rollout.top_p, stops, tokens.padding
            ),
            batch=rollout.batch,
            seed=job.run.seed,
            backend=self._backend(group),
        )
        return RolloutStep(
            resolved=self.resolved,
            job=job,
            collector=collector,
            learners=learners,
            reference=build_reference(self.resolved, job, prepared, policy, group),
            group=group,
            event_log=event_log,
        )

    def _backend(self, group: WorkerGroup) -> RolloutBackend | None:
        """Start the rollout actors and the reward computation on rank 0; fail on all ranks if it fails."""
        started: list[RolloutBackend] = []

        def start() -> None:
            started.append(start_rollout_backend(self.resolved, self.job, self.prepared))

        # Only whether it succeeded is sent to the other ranks: processes and connections can't be.
        on_rank_zero(group, start)
        return started[0] if started else None

    def evaluators(
        self,
        learners: list[Learner],
        batch_builder: BatchBuilder,
        group: WorkerGroup,
        event_log: EventLog | None,
    ) -> list[Evaluator]:
        assert isinstance(batch_builder, RolloutStep), "made by another recipe"
        collector, reference = batch_builder.collector, batch_builder.reference
        run_dir = self.resolved.run_dir
        return [HeldOutPrompts(self.job, self.prepared, collector, reference, run_dir, event_log)]

    def flops_per_token(self, model: torch.nn.Module) -> float:
        length = self.job.forward_length
        return flops_per_token(model, length, self.job.rollout.max_new_tokens / length)
