"""Held-out prompts answered by the policy: what the answers are worth, and how far it has moved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymill.data.store.manifest import PreparedData
from raymill.data.store.validation import ValidationSet
from raymill.durable import write_atomic
from raymill.engine.agreement import on_all_ranks
from raymill.engine.answer_table import rounded, write_table
from raymill.engine.evaluation import EvalPoint, evaluating
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.engine.reference import FrozenModel
from raymill.reading import read_json
from raymill.rl.rollout_batch import token_log_probs
from raymill.rl.sampling import Prompt, RolloutCollector, ScoredRollouts
from raymill.schema.jobs import RlhfJob

PARENT_NAME = "samples/parent-prompts.json"


@dataclass(frozen=True)
class HeldOutPrompts:
    """Answers are drawn as in training, one a prompt, with the same seeds each time.

    The distance to the reference is E[log π − log π_ref] over these answers, in nats an answer.
    """

    job: RlhfJob
    prepared: list[PreparedData]
    source: RolloutCollector
    reference: FrozenModel
    run_dir: Path
    event_log: EventLog | None

    def measure(self, model: Any, group: WorkerGroup, eval_point: EvalPoint) -> dict[str, float]:
        """See `Evaluator`."""
        if not (eval_point.first or eval_point.due(self.job.evaluation.every)):
            return {}
        prompts = on_all_ranks(group, lambda: self._prompts)
        if not prompts:
            return {}
        self.source.sync(eval_point.step)
        judged = self.source.sample(-1, prompts, 1)
        if self.event_log is not None:
            self._write(self.event_log, judged, eval_point)
        return judged.figures("prompts") | {"prompts/kl": self._distance(model, judged, group)}

    def _distance(self, model: Any, judged: ScoredRollouts, group: WorkerGroup) -> float:
        """Each rank an equal share of the answers; the last ones twice where they don't divide."""
        rollout, temperature = judged.rollout, self.job.rollout.temperature
        count = -(-len(rollout) // group.world_size)
        numbers = np.arange(group.rank * count, (group.rank + 1) * count)
        counted = numbers < len(rollout)
        rollouts = judged.taken(numbers.clip(max=len(rollout) - 1))
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

    def _write(self, event_log: EventLog, judged: ScoredRollouts, eval_point: EvalPoint) -> None:
        """A table of the answers beside the parent's."""
        assert self.source.backend is not None
        shown = self.job.evaluation.answers_shown
        decode = self.source.backend.decode
        answers = [text.strip() for text in decode([a.tolist() for a in judged.rollout.answers])]
        asked = [text.strip() for text in decode([p.tolist() for p in judged.rollout.prompts])]
        pairs = [
            (text, rounded(reward)) for text, reward in zip(answers, judged.rewards, strict=True)
        ]
        path = self.run_dir / PARENT_NAME
        if eval_point.first:
            with event_log.without("the table of the parent's answers", eval_point.step):
                path.parent.mkdir(exist_ok=True)
                write_atomic(path, json.dumps(pairs, ensure_ascii=False))
        parent: Sequence[Any] = [("", None)] * len(pairs)
        parent = read_json(path, missing=parent)
        rows = [
            [prompt, *before, *after]
            for prompt, before, after in zip(asked, parent, pairs, strict=False)
        ]
        columns = ("prompt", "parent's answer", "reward before", "answer", "reward")
        write_table(self.run_dir, event_log, "prompts", eval_point.step, columns, rows[:shown])

    @cached_property
    def _prompts(self) -> list[Prompt]:
        """Held-out prompts of all sources, numbered on their own."""
        found: list[Prompt] = []
        for source, data in enumerate(self.prepared):
            rows_ = ValidationSet(
                data.folder,
                rank=0,
                world_size=1,
                batch_rows=256,
                rows=self.job.evaluation.rows,
                source=source,
            )
            for rows in rows_:
                numbers = np.arange(len(found), len(found) + len(rows), dtype=np.int64)
                found += Prompt.of(numbers, rows)
        return found
