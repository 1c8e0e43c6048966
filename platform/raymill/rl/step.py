"""Batches of a reinforcement-learning step: prompts become answers, answers get rewards and advantages.

A sample is a drawn prompt. All of a step's prompts are divided into minibatches by their sample ids, and each
minibatch into parts for the ranks (`shares.share_groups`), so which answers share an update depends on nothing
else. Rank 0 has all answers; the others have their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from raymill.data.store.stream import StepBatch
from raymill.engine.batches import Floats, Ints, UpdateBatches
from raymill.engine.evaluation import evaluating
from raymill.engine.event_log import EventLog, round_reward, write_table
from raymill.engine.group import WorkerGroup
from raymill.engine.learner import Learner
from raymill.engine.reference import FrozenModel
from raymill.engine.resolved_run import ResolvedRun
from raymill.rl.advantages import compute_advantages
from raymill.rl.collector import RolloutCollector
from raymill.rl.losses import AdaptiveKl, kl
from raymill.rl.objective import Critic, PolicyGradient
from raymill.rl.rollout_backend import ScoredRollouts
from raymill.rl.rollout_batch import RolloutBatch, token_log_probs
from raymill.rl.shares import (
    AnswerShare,
    StepPrompts,
    answers_of,
    share_groups,
    tokens_by_group,
)
from raymill.schema.jobs import RlhfJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class RolloutStep:
    """Builder of a step's updates from sampled answers; see `BatchBuilder`."""

    resolved: ResolvedRun
    job: RlhfJob
    collector: RolloutCollector
    learners: list[Learner]
    reference: FrozenModel
    group: WorkerGroup
    event_log: EventLog | None
    kl: AdaptiveKl = field(init=False)
    lookahead: bool = field(init=False)
    # Causes of missing rewards that have been logged.
    _logged_causes: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.restore({})
        self.lookahead = self.job.rollout.staleness > 0

    def build_step(
        self, batch: StepBatch, step: int, upcoming: StepBatch | None = None
    ) -> UpdateBatches:
        """Sample answers, compute their advantages, and split them into updates; see `BatchBuilder`."""
        algorithm, group_size = self.job.algorithm, self.job.rollout.group_size
        if self.collector.pending_step != step:
            self.collector.sync_weights(step - 1)
            self.collector.start(step, self._gather_prompts(batch), group_size)
        scored = self.collector.collect()
        if self.lookahead and upcoming is not None:
            # The next step's answers are sampled while this step's are learned from.
            self.collector.sync_weights(step - 1)
            self.collector.start(step + 1, self._gather_prompts(upcoming), group_size)
        share = self.collector.share(scored, None if scored is None else self._assigned(scored))
        rollouts = compute_advantages(
            self._with_model_outputs(share.to_batch()),
            torch.from_numpy(share.rewards),
            torch.from_numpy(share.stopped),
            group_size,
            algorithm,
            self._all_reduce,
        )
        metrics = self._metrics(scored, rollouts)
        self._adapt_kl(rollouts)
        self._log(scored, rollouts, share, step)
        size = len(rollouts) // algorithm.minibatches
        starts = range(0, len(rollouts), size)
        updates = [rollouts.part(first, first + size) for first in starts]
        samples = [np.unique(share.sample_id[first : first + size]) for first in starts]
        # All tokens of the training pass, so that MFU is computed from the work that was done.
        tokens = int(rollouts.length.sum())
        return UpdateBatches(
            updates * algorithm.epochs, samples * algorithm.epochs, tokens, metrics=metrics
        )

    def loss_sums(self, losses: Sequence[Floats], batch: StepBatch) -> dict[str, list[float]]:
        """Return no sums: no metrics follow from the losses alone."""
        return {}

    def state(self) -> dict[str, float]:
        """See `BatchBuilder`."""
        return {"kl_coefficient": self.kl.beta}

    def restore(self, state: Mapping[str, float]) -> None:
        """See `BatchBuilder`."""
        algorithm = self.job.algorithm
        beta = float(state.get("kl_coefficient", algorithm.kl_coefficient))
        self.kl = AdaptiveKl(beta, algorithm.kl_target, algorithm.kl_horizon)

    def close(self) -> None:
        """End samplers and reward computer."""
        self.collector.close()

    def _gather_prompts(self, batch: StepBatch) -> StepPrompts | None:
        """Return the step's prompts of all ranks on rank 0; collective."""
        return self.collector.gather_prompts(StepPrompts.from_rows(batch.sample_id, batch.rows))

    def _assigned(self, scored: ScoredRollouts) -> list[Ints]:
        """Return the indices of each rank's answers among the step's."""
        size = self.job.rollout.group_size
        groups = share_groups(
            tokens_by_group(scored.rollout, size),
            self.job.algorithm.minibatches,
            self.group.world_size,
        )
        return [answers_of(of_rank, size) for of_rank in groups]

    def _with_model_outputs(self, rollouts: RolloutBatch) -> RolloutBatch:
        """Add the log-probabilities and values that the models compute before any update of the step."""
        algorithm, device = self.job.algorithm, self.group.device
        temperature = self.job.rollout.temperature
        policy = self.learners[0]
        objective = policy.objective
        assert isinstance(objective, PolicyGradient), "the first learner is the policy"
        columns: dict[str, torch.Tensor] = {}
        # With one update per step, π_old equals π in that update, which computes it anyway.
        several_updates = algorithm.epochs * algorithm.minibatches > 1
        if several_updates or algorithm.kl == "reward":
            columns["old"] = self._in_micro_batches(
                policy.model,
                rollouts,
                lambda model, part: token_log_probs(
                    model, objective.head, part, temperature, device
                )[0],
            )
        if algorithm.kl != "none":
            with self.reference.active() as model:
                head = model.get_output_embeddings()
                columns["reference"] = self._in_micro_batches(
                    model,
                    rollouts,
                    lambda model, part: token_log_probs(model, head, part, temperature, device)[0],
                )
        if len(self.learners) > 1:
            critic = self.learners[1].objective
            assert isinstance(critic, Critic), "the second learner is the critic"
            columns["value"] = self._in_micro_batches(
                self.learners[1].model,
                rollouts,
                lambda model, part: critic.values(model, part, device),
            )
        return replace(rollouts, kl_coefficient=self.kl.beta, **columns)

    def _in_micro_batches(
        self,
        model: PreTrainedModel,
        rollouts: RolloutBatch,
        compute: Callable[[PreTrainedModel, RolloutBatch], torch.Tensor],
    ) -> torch.Tensor:
        """[B, T] Output of `compute` for all rollouts, without gradients.

        Computed in training's micro-batches, so that shapes, and with them the last bits, are the same as
        in training.
        """
        size = self.job.train.micro_batch
        output_BT = torch.zeros(rollouts.mask.shape)
        with evaluating(model):
            for first in range(0, len(rollouts), size):
                part = rollouts.part(first, first + size)
                values = compute(model, part).cpu()
                output_BT[first : first + len(part), : values.shape[1]] = values
        return output_BT

    def _all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, in float64."""
        summed = self.group.sum_array(values.double().reshape(-1).numpy())
        return torch.from_numpy(summed).reshape(values.shape)

    def _metrics(self, scored: ScoredRollouts | None, rollouts: RolloutBatch) -> dict[str, float]:
        """Return the metrics of all ranks' answers on rank 0, the critic's on all; collective."""
        critic_metrics = self._critic_metrics(rollouts)
        if scored is None:
            return critic_metrics
        rewards = scored.rewards[~np.isnan(scored.rewards)]
        metrics = {
            **scored.metrics("rollout"),
            "rollout/kl_coefficient": self.kl.beta,
            "perf/sync_s": self.collector.sync_s,
            **{f"perf/{name}_s": seconds for name, seconds in scored.seconds.items()},
        }
        if len(rewards):
            p10, p50, p90 = np.quantile(rewards, (0.1, 0.5, 0.9)).tolist()
            metrics |= {
                "rollout/reward_std": float(rewards.std()),
                "rollout/reward_p10": p10,
                "rollout/reward_p50": p50,
                "rollout/reward_p90": p90,
            }
        by_group = scored.rewards.reshape(-1, self.job.rollout.group_size)
        equal = np.nanmax(by_group, axis=1, initial=-np.inf) == np.nanmin(
            by_group, axis=1, initial=np.inf
        )
        metrics["rollout/equal_groups"] = float(equal.mean())
        return metrics | critic_metrics

    def _critic_metrics(self, rollouts: RolloutBatch) -> dict[str, float]:
        """Return the share of the returns' variance that the critic's values explain."""
        if rollouts.value is None or rollouts.returns is None:
            return {}
        mask = rollouts.mask.double()
        error, returns = (rollouts.returns - rollouts.value).double(), rollouts.returns.double()
        sums = self.group.sum(
            float(mask.sum()),
            *(float((v * mask).sum()) for v in (error, error**2, returns, returns**2)),
        )
        count, error_sum, error_squares, return_sum, return_squares = sums
        # No answer of this step is learned from.
        if not count:
            return {}
        variance = return_squares / count - (return_sum / count) ** 2
        residual = error_squares / count - (error_sum / count) ** 2
        return {"critic/explained_variance": 1 - residual / variance if variance > 0 else 0.0}

    def _adapt_kl(self, rollouts: RolloutBatch) -> None:
        """Adapt the KL coefficient to the distance of this step's policy from the reference."""
        if self.job.algorithm.kl_target is None or rollouts.reference is None:
            return
        policy = rollouts.old if rollouts.old is not None else rollouts.sampler
        distance = (kl("k1", policy, rollouts.reference) * rollouts.mask).sum()
        learned = (rollouts.mask.sum(dim=1) > 0).sum()
        total, count = self.group.sum(float(distance), float(learned))
        answers = self.job.train.global_batch * self.job.rollout.group_size
        if count:
            self.kl = self.kl.updated(total / count, answers)

    def _log(
        self,
        scored: ScoredRollouts | None,
        rollouts: RolloutBatch,
        share: AnswerShare,
        step: int,
    ) -> None:
        """Log incidents, new causes of missing rewards and, when due, a table of answers; collective."""
        if self.event_log is not None and scored is not None:
            new = {c: n for c, n in scored.causes.items() if c not in self._logged_causes}
            self._logged_causes |= set(new)
            messages = [
                f"{count} of this step's {len(scored.rewards)} answers couldn't be judged: {cause}; from "
                "now on rollout/dropped counts those without a reward"
                for cause, count in new.items()
            ]
            for text in (*self.collector.incidents, *messages):
                self.event_log.write("message", step - 1, text=text)
        self.collector.incidents.clear()
        every = self.job.evaluation.table_every
        if every and step % every == 0:
            advantages = self._mean_advantages(share, rollouts)
            if self.event_log is not None and scored is not None:
                self._write_table(self.event_log, scored, advantages, step)

    @property
    def _shown(self) -> int:
        """Number of answers in a table."""
        prompts = min(self.job.evaluation.answers_shown, self.job.train.global_batch)
        return prompts * self.job.rollout.group_size

    def _mean_advantages(self, share: AnswerShare, rollouts: RolloutBatch) -> Floats:
        """[N] Mean token advantage of the answers in the table; NaN for those that aren't learned from."""
        assert rollouts.advantage is not None, "advantages have been computed"
        mask_BT = rollouts.mask.double()
        learned_B = (mask_BT.sum(dim=1) > 0).numpy()
        sum_B = (rollouts.advantage.double() * mask_BT).sum(dim=1).numpy()
        mean_B = np.divide(sum_B, mask_BT.sum(dim=1).numpy(), where=learned_B, out=sum_B * 0)
        # Every answer is one rank's, so that the sums over the ranks are its own.
        of_ranks = np.zeros((2, self._shown))
        own = share.index < self._shown
        of_ranks[:, share.index[own]] = mean_B[own], learned_B[own]
        mean_N, learned_N = self.group.sum_array(of_ranks)
        return np.where(learned_N > 0, mean_N, np.nan)

    def _write_table(
        self,
        event_log: EventLog,
        scored: ScoredRollouts,
        advantages: Floats,
        step: int,
    ) -> None:
        """Write the first prompts' answers with their rewards and advantages."""
        assert self.collector.backend is not None, "the rank with an event log has the backend"
        rollout, decode = scored.rollout, self.collector.backend.decode
        shown = range(min(len(rollout), self._shown))
        prompts = decode([rollout.prompts[index].tolist() for index in shown])
        answers = decode([rollout.answers[index].tolist() for index in shown])
        names = list(scored.components)
        rows = [
            [
                prompt.strip(),
                answer.strip(),
                round_reward(scored.rewards[index]),
                *(round_reward(scored.components[name][index]) for name in names),
                round_reward(advantages[index]),
                len(rollout.answers[index]),
                bool(rollout.stopped[index]),
            ]
            for index, prompt, answer in zip(shown, prompts, answers, strict=True)
        ]
        columns = ("prompt", "answer", "reward", *names, "advantage", "tokens", "ended")
        write_table(self.resolved.run_dir, event_log, "rollouts", step, columns, rows)
