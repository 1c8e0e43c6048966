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
from raymill.engine.group import WorkerGroup, on_rank_zero
from raymill.engine.reference import FrozenModel
from raymill.reading import read_json
from raymill.rl.collector import RolloutCollector
from raymill.rl.rollout_backend import ScoredRollouts
from raymill.rl.rollout_batch import token_log_probs
from raymill.rl.shares import StepPrompts
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
        if not on_rank_zero(group, lambda: len(self._prompts)):
            return {}
        self.collector.sync_weights(eval_point.step)
        scored = self.collector.sample(-1, self._prompts if group.rank == 0 else None, 1)
        if self.event_log is not None and scored is not None:
            self._write_table(self.event_log, scored, eval_point)
        metrics = {} if scored is None else scored.metrics("prompts")
        return metrics | {"prompts/kl": self._distance(model, scored, group)}

    def _distance(
        self, model: PreTrainedModel, scored: ScoredRollouts | None, group: WorkerGroup
    ) -> float:
        """Return the mean distance from the reference, in nats per answer; collective."""
        temperature = self.job.rollout.temperature
        answers = on_rank_zero(group, lambda: 0 if scored is None else len(scored.rollout))
        # Ranks take equal shares, because forward passes may be collective; where the answers don't divide
        # evenly, the last one is repeated and not counted.
        count = -(-answers // group.world_size)
        first_of_rank = group.rank * count
        indices = [
            np.arange(rank * count, (rank + 1) * count).clip(max=answers - 1)
            for rank in range(group.world_size if scored is not None else 0)
        ]
        rollouts = self.collector.share(scored, indices).to_batch()
        counted = np.arange(first_of_rank, first_of_rank + count) < answers
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
        return group.sum(total)[0] / answers

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
    def _prompts(self) -> StepPrompts:
        """Held-out prompts of all sources, with sample ids from 0; rank 0 alone reads them."""
        tables: list[bytes] = []
        count, width = 0, self.prepared[0].manifest.sequence_length + 1
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
                numbers = np.arange(count, count + len(rows), dtype=np.int64)
                count += len(rows)
                tables.append(StepPrompts.from_rows(numbers, rows).table(width).tobytes())
        return StepPrompts.from_bytes(tables, width)
