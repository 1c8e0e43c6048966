"""Supervised fine-tuning: a parent model learns the assistant's turns of conversations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from raymill.data.messages.tokenizer import has_template
from raymill.data.store.manifest import load_prepared
from raymill.data.text.control_tokens import ControlTokens
from raymill.engine.answers import AnsweredQuestions
from raymill.engine.batches import BatchBuilder
from raymill.engine.build_models import flops_per_token, open_held_out_sets, plan_policy
from raymill.engine.evaluation import Evaluator, HeldOutLoss
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup, on_all_ranks
from raymill.engine.learner import Learner
from raymill.engine.recipe import Recipe
from raymill.model.blueprint import Blueprint
from raymill.objective.forward import FLAT_KERNELS
from raymill.objective.language_modeling import AssistantTokens, LanguageModeling
from raymill.schema.jobs import SftJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class FineTuning(Recipe[SftJob]):
    """See `Recipe`."""

    @property
    def packing_key(self) -> str | None:
        return "data.packing" if self.job.data.packing else None

    @property
    def samples(self) -> bool:
        return self.job.evaluation.questions > 0

    def plan_model(self, fresh: bool) -> Blueprint:
        from raymill.model.parent import add_embedding_noise, freeze

        job = self.job
        # Also where a checkpoint follows: it holds only the trainable parameters.
        blueprint = plan_policy(self.resolved, job, self.prepared[0])
        if job.freeze:
            freeze(blueprint.model, job.freeze)
        if job.neftune_alpha:
            # The noise is scaled by the length of a row, but a flat kernel's pass joins several rows into one.
            flat = job.attention in FLAT_KERNELS
            length = job.data.sequence_length if flat else None
            add_embedding_noise(blueprint.model, job.neftune_alpha, length)
        return blueprint

    def objective(self, model: PreTrainedModel, group: WorkerGroup) -> AssistantTokens:
        return AssistantTokens(model.get_output_embeddings())

    def evaluators(
        self,
        learners: list[Learner],
        batch_builder: BatchBuilder,
        group: WorkerGroup,
        event_log: EventLog | None,
    ) -> list[Evaluator]:
        job, settings = self.job, self.job.evaluation
        objective = learners[0].objective
        assert isinstance(objective, AssistantTokens), "the loss of another recipe"
        named = open_held_out_sets(self.prepared, settings, group)
        weights = self.resolved.weights
        evaluators: list[Evaluator] = [HeldOutLoss(objective, named, weights, settings.every)]
        if settings.questions:
            assert self.resolved.model_folder is not None, (
                "a parent is resolved before workers start"
            )
            parent, first = self.resolved.model_folder, self.prepared[0]
            parent_chats = partial(has_template, parent)
            evaluators.append(
                AnsweredQuestions(
                    prepared=first,
                    settings=settings,
                    objective=objective,
                    run_dir=self.resolved.run_dir,
                    seed=job.run.seed,
                    parent_chats=on_all_ranks(group, parent_chats),
                    tokens=on_all_ranks(group, partial(ControlTokens.from_prepared, first, parent)),
                    lockstep=job.zero.stage == 3,
                    event_log=event_log,
                )
            )
        if self.resolved.forgetting is not None:
            # With the loss of pretraining, in bits per byte, to compare with the parent's.
            watched = on_all_ranks(group, partial(load_prepared, self.resolved.forgetting))
            text = LanguageModeling(watched.manifest.tokenizer.end_of_text_id)
            rows = open_held_out_sets([watched], settings, group)
            evaluators.append(HeldOutLoss(text, rows, (1.0,), settings.answer_every, "forgetting"))
        return evaluators

    def flops_per_token(self, model: torch.nn.Module) -> float:
        weights = self.resolved.weights
        share = 0.0
        for data, weight in zip(self.prepared, weights, strict=True):
            chat = data.manifest.chat
            assert chat is not None, "data of another kind is refused before workers start"
            learned = chat.learned_tokens / max(1, chat.statistics["train"]["tokens"])
            # Logits are computed only where the loss is, at the assistant's tokens.
            share += weight / sum(weights) * learned
        return flops_per_token(model, self.job.data.sequence_length, share)
