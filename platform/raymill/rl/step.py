"""The material of reinforcement learning: prompts become answers, answers become advantages.

A sample is a prompt that was drawn. All of a step's prompts are cut into minibatches by their sample ids,
and each of those into equal parts for the ranks; so which answers share an update depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raymill.data.store.stream import StepBatch
from raymill.engine.answer_table import rounded, write_table
from raymill.engine.batches import Floats, Gathered
from raymill.engine.evaluation import evaluating
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.engine.learner import Learner
from raymill.engine.reference import FrozenModel
from raymill.engine.resolved_run import ResolvedRun
from raymill.rl.losses import AdaptiveKl, kl
from raymill.rl.objective import Critic, PolicyGradient
from raymill.rl.rollout_batch import RolloutBatch, token_log_probs
from raymill.rl.sampling import Prompt, RolloutCollector, ScoredRollouts
from raymill.rl.token_advantages import compute_advantages
from raymill.schema.jobs import RlhfJob


@dataclass
class RolloutStep:
    """See `BatchBuilder`."""

    resolved: ResolvedRun
    job: RlhfJob
    source: RolloutCollector
    learners: list[Learner]
    reference: FrozenModel
    group: WorkerGroup
    event_log: EventLog | None
    kl: AdaptiveKl = field(init=False)
    lookahead: bool = field(init=False)
    _causes: set[str] = field(
        default_factory=set, init=False
    )  # of answers that couldn't be judged, told already

    def __post_init__(self) -> None:
        self.restore({})
        self.lookahead = self.job.rollout.staleness > 0

    def gather(self, batch: StepBatch, step: int, upcoming: StepBatch | None = None) -> Gathered:
        """Sample, judge, and work out what each answer's tokens should gain; see `BatchBuilder`."""
        prompts = self._drawn(batch)
        judged = self._answers(step, prompts, upcoming)
        mine = self._share(len(prompts))
        rollouts = self._known(judged.taken(mine))
        rewards = torch.from_numpy(judged.rewards[mine])
        stopped = torch.from_numpy(judged.rollout.stopped[mine])
        credit = compute_advantages(
            rollouts,
            rewards,
            stopped,
            self.job.rollout.group_size,
            self.job.algorithm,
            self._sum,
        )
        figures = self._figures(judged, credit)
        self._adapt(credit, len(judged.rewards))
        if self.event_log is not None:
            for text in (*self.source.incidents, *self._new_causes(judged)):
                self.event_log.write("message", step - 1, text=text)
        every = self.job.evaluation.table_every
        if every and step % every == 0:
            advantages = self._of_all(mine, credit)
            if self.event_log is not None:
                self._table(judged, advantages, step)
        self.source.incidents.clear()
        algorithm = self.job.algorithm
        size = len(mine) // algorithm.minibatches
        starts = range(0, len(mine), size)
        parts = [credit.part(first, first + size) for first in starts]
        samples = [
            np.unique(judged.rollout.sample_id[mine[first : first + size]]) for first in starts
        ]
        # All that a training pass goes through, so that MFU is of what was computed.
        rollout = judged.rollout
        tokens = sum(len(ids) for ids in (*rollout.prompts, *rollout.answers))
        epochs = algorithm.epochs
        return Gathered(parts * epochs, samples * epochs, tokens, figures)

    def learned(self, losses: Sequence[Floats], batch: StepBatch) -> dict[str, float]:
        """Nothing follows from the losses alone."""
        return {}

    def state(self) -> dict[str, Any]:
        return {"kl_coefficient": self.kl.beta}

    def restore(self, state: Mapping[str, Any]) -> None:
        algorithm = self.job.algorithm
        beta = float(state.get("kl_coefficient", algorithm.kl_coefficient))
        self.kl = AdaptiveKl(beta, algorithm.kl_target, algorithm.kl_horizon)

    def close(self) -> None:
        self.source.close()

    def _drawn(self, batch: StepBatch) -> list[Prompt]:
        """The step's prompts of all ranks, by sample id."""
        mine = Prompt.of(batch.sample_id, batch.rows)
        everybody = [prompt for part in self.group.gather(mine) for prompt in part]
        return sorted(everybody, key=lambda prompt: prompt.sample_id)

    def _answers(
        self, step: int, prompts: list[Prompt], upcoming: StepBatch | None
    ) -> ScoredRollouts:
        """This step's answers; with staleness, the next step's are begun before these are learned from."""
        size = self.job.rollout.group_size
        if self.source.begun != step:
            self.source.sync(step - 1)
            self.source.begin(step, prompts, size)
        judged = self.source.collect()
        if self.lookahead and upcoming is not None:
            self.source.sync(step - 1)
            self.source.begin(step + 1, self._drawn(upcoming), size)
        return judged

    def _share(self, prompts: int) -> npt.NDArray[np.int64]:
        """The places of this rank's answers, minibatch by minibatch."""
        world, size = self.group.world_size, self.job.rollout.group_size
        minibatches = self.job.algorithm.minibatches
        count = prompts // (minibatches * world)
        first = (np.arange(minibatches) * world + self.group.rank) * count
        groups = (first[:, None] + np.arange(count)).reshape(-1)
        return (groups[:, None] * size + np.arange(size)).reshape(-1)

    def _known(self, rollouts: RolloutBatch) -> RolloutBatch:
        """With what the policy, the reference and the critic say of the answers before any update."""
        policy = self.learners[0]
        algorithm, device = self.job.algorithm, self.group.device
        temperature = self.job.rollout.temperature
        objective = policy.objective
        assert isinstance(objective, PolicyGradient)
        several = algorithm.epochs * algorithm.minibatches > 1
        columns: dict[str, Any] = {}
        if several or algorithm.kl == "reward":
            columns["old"] = self._by_parts(
                policy.model,
                rollouts,
                lambda model, part: token_log_probs(
                    model, objective.head, part, temperature, device
                )[0],
            )
        if algorithm.kl != "none":
            with self.reference.active() as model:
                head = model.get_output_embeddings()
                columns["reference"] = self._by_parts(
                    model,
                    rollouts,
                    lambda model, part: token_log_probs(model, head, part, temperature, device)[0],
                )
        if len(self.learners) > 1:
            critic = self.learners[1].objective
            assert isinstance(critic, Critic)
            columns["value"] = self._by_parts(
                self.learners[1].model,
                rollouts,
                lambda model, part: critic.values(model, part, device),
            )
        return replace(rollouts, kl_coefficient=self.kl.beta, **columns)

    def _by_parts(
        self, model: Any, rollouts: RolloutBatch, work: Callable[[Any, RolloutBatch], torch.Tensor]
    ) -> torch.Tensor:
        """[B, T] What `work` gives, micro-batch by micro-batch as in training: so shapes, and the last bits
        with them, are the same as there."""
        size = self.job.train.micro_batch
        found = torch.zeros(rollouts.mask.shape)
        with evaluating(model):
            for first in range(0, len(rollouts), size):
                part = rollouts.part(first, first + size)
                values = work(model, part).cpu()
                found[first : first + len(part), : values.shape[1]] = values
        return found

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all ranks, in float64."""
        summed = self.group.sum(*values.double().reshape(-1).tolist())
        return torch.tensor(summed, dtype=torch.float64).reshape(values.shape)

    def _figures(self, judged: ScoredRollouts, credit: RolloutBatch) -> dict[str, float]:
        """What the step's answers are like; every rank knows all of them."""
        rewards = judged.rewards[~np.isnan(judged.rewards)]
        figures = {
            **judged.figures("rollout"),
            "rollout/kl_coefficient": self.kl.beta,
            "perf/sync_s": self.source.sync_s,
            **{f"perf/{name}_s": seconds for name, seconds in judged.seconds.items()},
        }
        if len(rewards):
            low, middle, high = np.quantile(rewards, (0.1, 0.5, 0.9)).tolist()
            figures |= {
                "rollout/reward_std": float(rewards.std()),
                "rollout/reward_p10": low,
                "rollout/reward_p50": middle,
                "rollout/reward_p90": high,
            }
        by_group = judged.rewards.reshape(-1, self.job.rollout.group_size)
        equal = np.nanmax(by_group, axis=1, initial=-np.inf) == np.nanmin(
            by_group, axis=1, initial=np.inf
        )
        figures["rollout/equal_groups"] = float(equal.mean())
        return figures | self._critic_figures(credit)

    def _critic_figures(self, credit: RolloutBatch) -> dict[str, float]:
        """How much of the returns' variance the critic foresaw."""
        if credit.value is None or credit.returns is None:
            return {}
        mask = credit.mask.double()
        error, returns = (credit.returns - credit.value).double(), credit.returns.double()
        sums = self.group.sum(
            float(mask.sum()),
            *(float((v * mask).sum()) for v in (error, error**2, returns, returns**2)),
        )
        count, e1, e2, r1, r2 = sums
        if not count:  # nothing of this step is learned from
            return {}
        variance = r2 / count - (r1 / count) ** 2
        residual = e2 / count - (e1 / count) ** 2
        return {"critic/explained_variance": 1 - residual / variance if variance > 0 else 0.0}

    def _adapt(self, credit: RolloutBatch, answers: int) -> None:
        """Steer the coefficient by the distance of this step's policy to the reference."""
        if self.job.algorithm.kl_target is None or credit.reference is None:
            return
        policy = credit.old if credit.old is not None else credit.sampler
        distance = (kl("k1", policy, credit.reference) * credit.mask).sum()
        total, count = self.group.sum(float(distance), float((credit.mask.sum(dim=1) > 0).sum()))
        if count:
            self.kl = self.kl.updated(total / count, answers)

    def _new_causes(self, judged: ScoredRollouts) -> list[str]:
        """Why answers couldn't be judged, each cause once."""
        new = {cause: n for cause, n in judged.causes.items() if cause not in self._causes}
        self._causes |= set(new)
        return [
            f"{count} of this step's {len(judged.rewards)} answers couldn't be judged: {cause}; from now on "
            "rollout/dropped counts those without a reward"
            for cause, count in new.items()
        ]

    def _of_all(self, mine: npt.NDArray[np.int64], credit: RolloutBatch) -> npt.NDArray[np.float64]:
        """[N] The mean advantage of each answer's tokens, of all ranks' answers; NaN: not learned from."""
        assert credit.advantage is not None
        mask_BT = credit.mask.double()
        mean_B = (credit.advantage.double() * mask_BT).sum(dim=1) / mask_BT.sum(dim=1)  # 0/0: NaN
        parts = self.group.gather((mine, mean_B.numpy()))
        found = np.full(sum(len(places) for places, _ in parts), np.nan)
        for places, means in parts:
            found[places] = means
        return found

    def _table(
        self, judged: ScoredRollouts, advantages: npt.NDArray[np.float64], step: int
    ) -> None:
        """The first prompts' answers, with what they are worth."""
        assert self.event_log is not None and self.source.backend is not None
        rollout, decode = judged.rollout, self.source.backend.decode
        places = range(
            min(len(rollout), self.job.evaluation.answers_shown * self.job.rollout.group_size)
        )
        asked = decode([rollout.prompts[place].tolist() for place in places])
        answered = decode([rollout.answers[place].tolist() for place in places])
        names = list(judged.components)
        rows = [
            [
                prompt.strip(),
                answer.strip(),
                rounded(judged.rewards[place]),
                *(rounded(judged.components[name][place]) for name in names),
                rounded(advantages[place]),
                len(rollout.answers[place]),
                bool(rollout.stopped[place]),
            ]
            for place, prompt, answer in zip(places, asked, answered, strict=True)
        ]
        columns = ("prompt", "answer", "reward", *names, "advantage", "tokens", "ended")
        write_table(self.resolved.run_dir, self.event_log, "rollouts", step, columns, rows)
