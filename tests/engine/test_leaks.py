"""Leak check: no job starts with a model in which sequences see each other."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from model.families import build
from objective.flash_stand_in import flash_attention, leaking
from objective.test_pairs import classifier
from raymill.config import load
from raymill.engine import setup
from raymill.engine.group import WorkerGroup
from raymill.engine.leaks import leaks, refuse_leaks, sees_ahead
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.start import StartPoint
from raymill.errors import ConfigError
from raymill.recipes.registry import recipe_of
from rl.rollout.tiny import tiny_model

CPU = torch.device("cpu")


class Leaky(torch.nn.Module):
    """A model that doesn't treat restarting positions as packed rows."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, position_ids: torch.Tensor, **arguments: Any) -> Any:
        return self.inner(**arguments)


@pytest.mark.parametrize("kind", ["language", "scores"])
def test_packing_is_refused_where_attention_leaks(kind: str) -> None:
    group = WorkerGroup(CPU)
    model = tiny_model() if kind == "language" else classifier("llama")
    head = model.lm_head if kind == "language" else model.score
    refuse_leaks(model, head, "data.packing", "attention", "fp32", group)
    assert leaks(model, head, True, CPU) == (0.0, 0.0)
    with pytest.raises(
        ConfigError, match=r"data\.packing=true: this model's attention .* data\.packing=false"
    ):
        refuse_leaks(Leaky(model), head, "data.packing", "attention", "fp32", group)


def test_a_model_whose_tokens_see_ahead_is_refused() -> None:
    """Let tokens see later ones, as an encoder does."""
    group, model = WorkerGroup(CPU), tiny_model()
    plain = build("bert", is_decoder=True).eval()
    refuse_leaks(plain, plain.get_output_embeddings(), None, "attention", "fp32", group)
    encoder = build("bert").eval()
    head = encoder.get_output_embeddings()
    with pytest.raises(ConfigError, match=r"parent: tokens .* see those that follow .* is_decoder"):
        refuse_leaks(encoder, head, None, "attention", "fp32", group)
    assert sees_ahead(model, model.lm_head, True, CPU) == 0.0
    assert sees_ahead(encoder, head, False, CPU) > 0.01


DATA = {
    "pretrain": (),
    "sft": (),
    "reward": ("data.path=pairs.jsonl",),
    "dpo": ("data.path=pairs.jsonl",),
    "rlhf": ("reward.model=judge",),
}
JOBS = {
    "pretrain": (
        "data.document_mask=true",
        r"data\.document_mask=true: .* another arch\.attention=",
    ),
    "pretrain whole rows": ("data.document_mask=false", r"arch\.attention: .* rows of a batch"),
    "sft": ("data.packing=true", r"data\.packing=true: .* another attention="),
    "sft whole rows": ("data.packing=false", "attention: .* rows of a batch"),
    "reward": ("run.seed=1", "attention: .* rows of a batch"),
    "dpo": ("loss.reference=live", "attention: .* rows of a batch"),
    "rlhf": ("run.seed=1", "attention: .* rows of a batch"),
}


@pytest.mark.parametrize("name", JOBS)
def test_every_job_tries_its_kernel_before_anything_is_learned(name: str) -> None:
    kind = name.split()[0]
    override, message = JOBS[name]
    job: Any = load(kind, [override, *DATA[kind]])
    resolved: ResolvedRun = SimpleNamespace(job=job, rl=None)  # type: ignore[assignment]
    recipe = recipe_of(resolved, [])
    model = classifier("llama") if kind == "reward" else tiny_model()

    def trainer(_job: Any, built: Any, *_: Any) -> Any:
        return SimpleNamespace(model=built)

    with ExitStack() as stack:
        stack.enter_context(patch.object(type(recipe), "plan_model", lambda *_, **__: model))
        stack.enter_context(patch.object(setup, "Trainer", trainer))
        stack.enter_context(flash_attention(model, leaking))
        with pytest.raises(ConfigError, match=message):
            setup.build_learners(recipe, resolved, StartPoint(None, False), WorkerGroup(CPU))
