"""Supervised fine-tuning: a parent model learns what the assistant says in conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raymill.config.schema import SftJob
from raymill.data.chat.tokenizer import has_template
from raymill.data.manifest import load_prepared
from raymill.data.rows import Rows
from raymill.engine.answers import AnsweredQuestions
from raymill.engine.evaluation import Evaluator, HeldOutLoss, evaluating
from raymill.engine.experience import Experience
from raymill.engine.group import WorkerGroup
from raymill.engine.journal import Journal
from raymill.engine.learner import Learner
from raymill.engine.parents import flops_per_token, held_out_sets, policy_model
from raymill.engine.recipe import Recipe
from raymill.errors import ConfigError
from raymill.objective.assistant_tokens import AssistantTokens
from raymill.objective.language_modelling import LanguageModelling


@dataclass(frozen=True)
class FineTuning(Recipe[SftJob]):
    """See `Recipe`."""

    def build_model(self, fresh: bool) -> torch.nn.Module:
        """Whether or not a checkpoint follows: it holds only what is trained."""
        from raymill.model.parent import add_embedding_noise, freeze

        job = self.job
        model = policy_model(self.assignment, job, self.prepared[0])
        if job.freeze:
            freeze(model, job.freeze)
        if job.neftune_alpha:
            add_embedding_noise(model, job.neftune_alpha)
        return model  # type: ignore[no-any-return]

    def objective(self, model: Any, group: WorkerGroup) -> AssistantTokens:
        return AssistantTokens(model.get_output_embeddings())

    def evaluators(
        self,
        learners: list[Learner],
        experience: Experience,
        group: WorkerGroup,
        journal: Journal | None,
    ) -> list[Evaluator]:
        model = learners[0].model
        job, settings = self.job, self.job.evaluation
        objective = learners[0].objective
        assert isinstance(objective, AssistantTokens)
        if job.data.packing:
            several = max(job.train.micro_batch, settings.batch) > 1
            refuse_leaks(model, objective, group, 2 if several else 1, job.train.precision)

        named = held_out_sets(self.prepared, settings, group)
        weights = self.assignment.weights
        evaluators: list[Evaluator] = [HeldOutLoss(objective, named, weights, settings.every)]
        if settings.questions:
            assert self.assignment.model_folder is not None
            evaluators.append(
                AnsweredQuestions(
                    prepared=self.prepared[0],
                    settings=settings,
                    objective=objective,
                    run_dir=self.assignment.run_dir,
                    seed=job.run.seed,
                    parent_chats=has_template(self.assignment.model_folder),
                    lockstep=job.zero.stage == 3,
                    journal=journal,
                )
            )
        if self.assignment.forgetting is not None:
            watched = load_prepared(self.assignment.forgetting)
            text = LanguageModelling(watched.manifest.tokenizer.end_of_text_id)
            rows = held_out_sets([watched], settings, group)
            evaluators.append(HeldOutLoss(text, rows, (1.0,), settings.answer_every, "forgetting"))
        return evaluators

    def flops_per_token(self, model: torch.nn.Module) -> float:
        weights = self.assignment.weights
        share = 0.0
        for data, weight in zip(self.prepared, weights, strict=True):
            chat = data.manifest.chat
            assert chat is not None
            learned = chat.learned_tokens / max(1, chat.statistics["train"]["tokens"])
            share += weight / sum(weights) * learned
        return flops_per_token(model, self.job.data.sequence_length, share)


def refuse_leaks(
    model: Any, objective: AssistantTokens, group: WorkerGroup, batch: int, precision: str
) -> None:
    """Make sure that a conversation's loss doesn't depend on the one packed before it; collective.

    transformers tells packed rows by positions that restart, but not for every family and kernel.

    Raises:
        ConfigError: it does, so packing would train across conversations.
    """
    half = 8
    tokens = np.stack([np.arange(1, 2 * half + 1), np.arange(1, 2 * half + 1)])
    tokens[1, :half] = tokens[0, :half][::-1]  # another neighbour, the same conversation after it
    second = np.tile(np.arange(2 * half) >= half, (2, 1))
    weight = (second & (np.arange(2 * half) > half)).astype(np.float32)
    rows = Rows(
        tokens, np.full(2, 2 * half, np.int32), weight=weight, segment=second.astype(np.uint16)
    )
    with evaluating(model):
        parts = [rows.part(first, first + batch) for first in range(0, 2, batch)]
        losses = torch.cat([objective.losses(model, part, group.device) for part in parts])
    first, other = losses.tolist()
    if abs(first - other) > (1e-5 if precision == "fp32" else 1e-3) * abs(first):
        raise ConfigError(
            [
                "data.packing=true: this model's attention doesn't keep the conversations of a row "
                f"apart (a loss of {first:.6f} or {other:.6f}, by its neighbour); set "
                "data.packing=false, or another attention="
            ]
        )
