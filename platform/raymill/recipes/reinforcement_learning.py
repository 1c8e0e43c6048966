"""Reinforcement learning: a parent model learns from answers of its own, by what they are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from raymill.data.text.control_tokens import ControlTokens
from raymill.engine.agreement import on_all_ranks, on_rank_zero
from raymill.engine.batches import BatchBuilder
from raymill.engine.evaluation import Evaluator
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.engine.learner import Learner
from raymill.engine.parents import flops_per_token, frozen_reference, policy_model, scalar_model
from raymill.engine.recipe import Recipe
from raymill.rl.backend import start_rollout_backend
from raymill.rl.evaluation import HeldOutPrompts
from raymill.rl.objective import Critic, PolicyGradient
from raymill.rl.rollout.engine import Sampling
from raymill.rl.sampling import RolloutBackend, RolloutCollector
from raymill.rl.step import RolloutStep
from raymill.schema.jobs import RlhfJob


@dataclass(frozen=True)
class Reinforcement(Recipe[RlhfJob]):
    """See `Recipe`."""

    @property
    def samples(self) -> bool:
        return self.job.rollout.engine == "transformers"

    def build_model(self, fresh: bool) -> torch.nn.Module:
        from raymill.model.parent import switch_dropout_off

        model: torch.nn.Module = policy_model(self.resolved, self.job, self.prepared[0])
        switch_dropout_off(model)  # π_old is computed in evaluation mode
        return model

    def objective(self, model: Any, group: WorkerGroup) -> PolicyGradient:
        return PolicyGradient(
            model.get_output_embeddings(),
            self.job.algorithm,
            self.job.rollout.temperature,
            self.job.rollout.max_new_tokens,
        )

    def build_critic(self) -> torch.nn.Module | None:
        folder = self.resolved.critic_folder
        if folder is None:
            return None
        from raymill.model.parent import scalar_head, switch_dropout_off

        model, had_head = scalar_model(self.resolved, self.job, self.prepared[0], folder)
        switch_dropout_off(model)  # values that it is clipped to are computed in evaluation mode
        if not had_head:  # what nothing is known of is worth nothing, and not something at random
            with torch.no_grad():
                for parameter in scalar_head(model).parameters():
                    parameter.zero_()
        critic: torch.nn.Module = model
        return critic

    def critic_objective(self, model: Any, group: WorkerGroup) -> Critic:
        from raymill.model.parent import scalar_head

        return Critic(scalar_head(model), self.job.algorithm.value_clip)

    def critic_learning_rate(self) -> float:
        return self.job.critic.learning_rate

    def experience(
        self, learners: list[Learner], group: WorkerGroup, event_log: EventLog | None
    ) -> BatchBuilder:
        job = self.job
        policy, prepared = learners[0].model, self.prepared[0]
        parent = self.resolved.model_folder
        tokens = on_all_ranks(group, lambda: ControlTokens.of(prepared, parent))
        rollout = job.rollout
        source = RolloutCollector(
            model=policy,
            group=group,
            sampling=Sampling(
                rollout.max_new_tokens,
                rollout.temperature,
                rollout.top_p,
                tuple(sorted(tokens.stops)),
                tokens.padding,
            ),
            batch=rollout.batch,
            seed=job.run.seed,
            backend=self._backend(group),
        )
        return RolloutStep(
            resolved=self.resolved,
            job=job,
            source=source,
            learners=learners,
            reference=frozen_reference(self.resolved, job, prepared, policy, group),
            group=group,
            event_log=event_log,
        )

    def _backend(self, group: WorkerGroup) -> RolloutBackend | None:
        """Samplers and judges, which the first rank starts; the others hear whether it could."""
        made: list[RolloutBackend] = []

        def start() -> None:
            made.append(start_rollout_backend(self.resolved, self.job, self.prepared))

        on_rank_zero(group, start)
        return made[0] if made else None

    def evaluators(
        self,
        learners: list[Learner],
        experience: BatchBuilder,
        group: WorkerGroup,
        event_log: EventLog | None,
    ) -> list[Evaluator]:
        assert isinstance(experience, RolloutStep)
        source, reference = experience.source, experience.reference
        run_dir = self.resolved.run_dir
        return [HeldOutPrompts(self.job, self.prepared, source, reference, run_dir, event_log)]

    def flops_per_token(self, model: torch.nn.Module) -> float:
        length = self.job.forward_length
        return flops_per_token(model, length, self.job.rollout.max_new_tokens / length)
