"""Evaluation on held-out prompts: rewards of the policy's answers, and its distance from the reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from raymill.data.store.manifest import PreparedData
from raymill.data.store.validation import ValidationSet
from raymill.durable import write_atomic
from raymill.engine.evaluation import EvalPoint, evaluating
from raymill.engine.event_log import EventLog, round_reward, write_table
from raymill.engine.group import WorkerGroup, on_all_ranks
from raymill.engine.reference import FrozenModel
from raymill.reading import read_json
from raymill.rl.collector import RolloutCollector, ScoredRollouts, StepPrompt
from raymill.rl.rollout_batch import token_log_probs
from raymill.schema.jobs import RlhfJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARENT_NAME = "samples/parent-prompts.json"


@dataclass(frozen=True)
class HeldOutPrompts:
    """Evaluator that samples one answer per held-out prompt, as in training, with the same seeds each time.

    The distance from the reference is E[log π − log π_ref] over these answers, in nats per answer.
    """

    job: RlhfJob
    prepared: list[PreparedData]
    collector: RolloutCollector
    reference: FrozenModel
    run_dir: Path
    event_log: EventLog | None

    def measure(
        self, model: PreTrainedModel, group: WorkerGroup, eval_point: EvalPoint
    ) -> dict[str, float]:
        """See `Evaluator`."""
        if not (eval_point.first or eval_point.due(self.job.evaluation.every)):
            return {}
        prompts = on_all_ranks(group, lambda: self._prompts)
        if not prompts:
            return {}
        self.collector.sync_weights(eval_point.step)
        scored = self.collector.sample(-1, prompts, 1)
        if self.event_log is not None:
            self._write_table(self.event_log, scored, eval_point)
        return scored.metrics("prompts") | {"prompts/kl": self._distance(model, scored, group)}

    def _distance(
        self, model: PreTrainedModel, scored: ScoredRollouts, group: WorkerGroup
    ) -> float:
        """Return the mean distance from the reference, in nats per answer."""
        rollout, temperature = scored.rollout, self.job.rollout.temperature
        # Ranks take equal shares, because forward passes may be collective; where the answers don't divide
        # evenly, the last one is repeated and not counted.
        count = -(-len(rollout) // group.world_size)
        indices = np.arange(group.rank * count, (group.rank + 1) * count)
        counted = indices < len(rollout)
        rollouts = scored.to_batch(indices.clip(max=len(rollout) - 1))
        size, device = self.job.evaluation.batch, group.device
        total = 0.0
        for first in range(0, count, size):
            part = rollouts.part(first, first + size)
            with evaluating(model):
                head = model.get_output_embeddings()
                policy_BT, _ = token_log_probs(model, head, part, temperature, device)
            with self.reference.active() as frozen:
                head = frozen.get_output_embeddings()
                reference_BT, _ = token_log_probs(frozen, head, part, temperature, device)
            distance_B = (policy_BT - reference_BT).double().sum(dim=1).cpu()
            total += float(distance_B[torch.from_numpy(counted[first : first + size])].sum())
        return group.sum(total)[0] / len(rollout)

    def _write_table(
        self, event_log: EventLog, scored: ScoredRollouts, eval_point: EvalPoint
    ) -> None:
        """Write a table of the answers next to the parent's, which are kept from the first evaluation."""
        assert self.collector.backend is not None, "the rank with an event log has the backend"
        shown = self.job.evaluation.answers_shown
        decode = self.collector.backend.decode
        answers = [text.strip() for text in decode([a.tolist() for a in scored.rollout.answers])]
        prompts = [text.strip() for text in decode([p.tolist() for p in scored.rollout.prompts])]
        pairs = [
            (text, round_reward(reward))
            for text, reward in zip(answers, scored.rewards, strict=True)
        ]
        path = self.run_dir / PARENT_NAME
        if eval_point.first:
            with event_log.optional_write("the table of the parent's answers", eval_point.step):
                path.parent.mkdir(exist_ok=True)
                write_atomic(path, json.dumps(pairs, ensure_ascii=False))
        parent: Sequence[Sequence[object]] = [("", None)] * len(pairs)
        parent = read_json(path, missing=parent)
        rows = [
            [prompt, *before, *after]
            for prompt, before, after in zip(prompts, parent, pairs, strict=False)
        ]
        columns = ("prompt", "parent's answer", "reward before", "answer", "reward")
        write_table(self.run_dir, event_log, "prompts", eval_point.step, columns, rows[:shown])

    @cached_property
    def _prompts(self) -> list[StepPrompt]:
        """Held-out prompts of all sources, with sample ids from 0."""
        prompts: list[StepPrompt] = []
        for source, data in enumerate(self.prepared):
            validation = ValidationSet(
                data.folder,
                rank=0,
                world_size=1,
                batch_rows=256,
                rows=self.job.evaluation.rows,
                source=source,
            )
            for rows in validation:
                numbers = np.arange(len(prompts), len(prompts) + len(rows), dtype=np.int64)
                prompts += StepPrompt.from_rows(numbers, rows)
        return prompts
