"""Models under DeepSpeed, with the weights and optimizer state of the start point."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from raymill.checkpoint.fragments import FragmentReader
from raymill.engine.group import WorkerGroup, exists_on_all_ranks, on_all_ranks
from raymill.engine.leaks import refuse_leaks
from raymill.engine.learner import Learner
from raymill.engine.materialize import continue_from
from raymill.engine.recipe import J, LearnerSpec, Recipe
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.start import StartPoint
from raymill.engine.trainer import Trainer
from raymill.model.blueprint import Blueprint
from raymill.timeline import mark

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_learners(
    recipe: Recipe[J], resolved: ResolvedRun, start: StartPoint, group: WorkerGroup
) -> list[Learner]:
    """Build the recipe's models with the weights they start from, under DeepSpeed; collective.

    DeepSpeed communicates while it starts, so every rank must have its models by then.
    """
    work = on_all_ranks(group, recipe.parent_work)
    # Ranks may see a file system differently, so that all do the work if one of them misses its result.
    known = exists_on_all_ranks(group, work is None, "what was computed of the parent before")
    if work is not None and not known:
        # The work needs the parent's weights, which a resumed run's models no longer have.
        parents = _build(recipe, resolved, StartPoint(None, False), group)
        work(parents[0].model, group)
        if start.checkpoint is None:
            return parents
        for learner in parents:
            learner.trainer.engine.destroy()
    return _build(recipe, resolved, start, group)


def _build(
    recipe: Recipe[J], resolved: ResolvedRun, start: StartPoint, group: WorkerGroup
) -> list[Learner]:
    job = resolved.job
    reader = (
        on_all_ranks(group, partial(start.checkpoint.reader, shared=True))
        if start.checkpoint
        else None
    )
    learners: list[Learner] = []
    for spec in recipe.learners():
        blueprint = on_all_ranks(group, partial(_plan, spec, reader))
        mark("model")
        trainer = Trainer(job, blueprint, group, spec.prefix)
        if reader is not None:
            updates, moments = start.updates(spec.prefix), start.keeps_moments
            on_all_ranks(group, partial(trainer.load_state, reader, updates, moments))
        # A leak between packed sequences changes no shape and raises nothing, so it is looked for here.
        refuse_leaks(
            trainer.model,
            _head(trainer.model),
            recipe.packing_key,
            recipe.attention_key,
            job.train.precision,
            group,
        )
        objective = spec.objective(trainer.model, group)
        micro_batch = job.train.micro_batch
        learners.append(
            Learner(trainer, objective, group, micro_batch, spec.learning_rate, spec.prefix)
        )
    return learners


def _plan(spec: LearnerSpec, reader: FragmentReader | None) -> Blueprint:
    """Plan a model with its initial weights, or with a checkpoint's."""
    blueprint = spec.plan_model(reader is None)
    if reader is not None:
        continue_from(blueprint, reader, spec.prefix)
    return blueprint


def _head(model: PreTrainedModel) -> torch.nn.Module:
    """Return the module that takes the last hidden states: the output matrix, or the scalar head."""
    from raymill.model.parent import scalar_head

    output: torch.nn.Module | None = model.get_output_embeddings()
    return scalar_head(model) if output is None else output
