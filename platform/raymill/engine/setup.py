"""From a start to models under DeepSpeed, at the right position."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from raymill.engine.agreement import on_all_ranks, seen_by_all
from raymill.engine.group import WorkerGroup
from raymill.engine.leaks import refuse_leaks
from raymill.engine.learner import Learner
from raymill.engine.recipe import Recipe
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.start import StartPoint
from raymill.engine.trainer import CRITIC, Trainer, load_weights
from raymill.timeline import mark


def build_learners(
    recipe: Recipe[Any], resolved: ResolvedRun, start: StartPoint, group: WorkerGroup
) -> list[Learner]:
    """The models with the weights they start from, under DeepSpeed; collective.

    DeepSpeed communicates while it starts, so every rank must have its models by then.
    """
    work = on_all_ranks(group, recipe.parent_work)
    known = seen_by_all(group, work is None, "what was computed of the parent before")
    if work is not None and not known:
        parents = _build(recipe, resolved, StartPoint(None, False), group)
        work(parents[0].model, group)
        if start.found is None:
            return parents
        for learner in parents:
            learner.trainer.engine.destroy()
    return _build(recipe, resolved, start, group)


def _build(
    recipe: Recipe[Any], resolved: ResolvedRun, start: StartPoint, group: WorkerGroup
) -> list[Learner]:
    job = resolved.job
    reader = on_all_ranks(group, start.found.reader) if start.found else None

    def build(critic: bool) -> torch.nn.Module | None:
        built = recipe.build_critic() if critic else recipe.build_model(fresh=reader is None)
        if built is not None and reader is not None:
            load_weights(built, reader, CRITIC if critic else "")
        return built

    learners: list[Learner] = []
    for critic in (False, True):
        model = on_all_ranks(group, partial(build, critic))
        if model is None:
            continue
        prefix = CRITIC if critic else ""
        mark("model")
        rate = recipe.critic_learning_rate() if critic else job.optim.learning_rate
        trainer = Trainer(job, model.to(group.device), group, prefix)
        if reader is not None:
            updates, moments = start.updates(prefix), start.keeps_moments
            on_all_ranks(group, partial(trainer.load_state, reader, updates, moments))
        refuse_leaks(
            trainer.model,
            _head(trainer.model),
            recipe.packing_key,
            recipe.attention_key,
            job.train.precision,
            group,
        )
        of = recipe.critic_objective if critic else recipe.objective
        learners.append(
            Learner(trainer, of(trainer.model, group), group, job.train.micro_batch, rate, prefix)
        )
    return learners


def _head(model: Any) -> torch.nn.Module:
    """Return what takes the last hidden states: the output matrix, or the head that gives one number."""
    from raymill.model.parent import scalar_head

    output: torch.nn.Module | None = model.get_output_embeddings()
    return scalar_head(model) if output is None else output
