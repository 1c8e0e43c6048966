"""Pretraining: a new model, or one that is continued, learns to predict text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from raymill.engine.batches import BatchBuilder
from raymill.engine.build_models import open_held_out_sets
from raymill.engine.evaluation import Evaluator, HeldOutLoss
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.engine.learner import Learner
from raymill.engine.recipe import Recipe
from raymill.engine.samples import SampledText
from raymill.model.blueprint import Blueprint
from raymill.objective.language_modeling import LanguageModeling
from raymill.plan.parameters import flops_per_token
from raymill.schema.jobs import PretrainJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Pretraining(Recipe[PretrainJob]):
    """See `Recipe`."""

    attention_key: ClassVar[str] = "arch.attention"

    @property
    def packing_key(self) -> str | None:
        return "data.document_mask" if self.job.data.document_mask else None

    def plan_model(self, fresh: bool) -> Blueprint:
        from raymill.model.build import plan_model, plan_pretrained

        folder, arch = self.resolved.model_folder, self.job.arch
        end = self.prepared[0].manifest.tokenizer.end_of_text_id
        # All parameters are trained, so that a checkpoint replaces the weights of `folder` entirely.
        if folder is not None and fresh:
            return plan_pretrained(folder, arch, self._vocab_size, end)
        return plan_model(arch, self._vocab_size, end, self.job.run.seed)

    def objective(self, model: PreTrainedModel, group: WorkerGroup) -> LanguageModeling:
        tokenizer = self.prepared[0].manifest.tokenizer
        # The token that opens a document, by which a row is divided into documents.
        first = next(iter(tokenizer.begins_with), tokenizer.end_of_text_id)
        return LanguageModeling(first, self.job.data.document_mask)

    def evaluators(
        self,
        learners: list[Learner],
        batch_builder: BatchBuilder,
        group: WorkerGroup,
        event_log: EventLog | None,
    ) -> list[Evaluator]:
        job = self.job
        held_out = open_held_out_sets(self.prepared, job.evaluation, group)
        weights = self.resolved.weights
        evaluators: list[Evaluator] = [
            HeldOutLoss(learners[0].objective, held_out, weights, job.evaluation.every)
        ]
        if job.evaluation.prompts:
            run_dir, seed = self.resolved.run_dir, job.run.seed
            evaluators.append(
                SampledText(self.prepared[0], job.evaluation, run_dir, seed, event_log)
            )
        return evaluators

    def flops_per_token(self, model: torch.nn.Module) -> float:
        return flops_per_token(self.job.arch, self._vocab_size, self.job.data.sequence_length)

    @property
    def _vocab_size(self) -> int:
        return self.job.arch.vocab_size or self.prepared[0].manifest.tokenizer.vocab_size
