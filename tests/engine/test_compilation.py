"""`train.compile`: layers are compiled a few times, whatever the rows, and their losses are the uncompiled
ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.probe import ARCH, Case, job_of, join
from engine.ranks import run_ranks
from model.planned import planned
from objective.test_forward import END, conversations, documents
from objective.test_pairs import classifier, rows_of, some_pairs
from raymill.engine.compilation import CompileTimer, layers_of, uncompiled
from raymill.engine.evaluation import evaluating
from raymill.engine.heartbeat import Heartbeat, read_heartbeats
from raymill.errors import ConfigError
from raymill.model.build import build_model
from raymill.objective.language_modeling import AssistantTokens, LanguageModeling
from raymill.objective.pairs import PreferredAnswers, RewardPairs
from raymill.rl.objective import PolicyGradient
from raymill.schema.sections import AlgorithmConfig
from rl.rollout.tiny import VOCAB_SIZE, tiny_model
from rl.test_objective import sampled, with_columns
from sections import plain
from servers import free_port

STEPS, WARM = 8, 4
Learned = tuple[Any, Any, Callable[[int], Any]]  # a model, what it learns, and the rows of a step


def texts(step: int, count: int) -> list[list[int]]:
    """Return text whose length differs in every step."""
    drawn = np.random.default_rng(step)
    return [drawn.integers(1, 100, int(size)).tolist() for size in drawn.integers(2, 9, count)]


def wide_model() -> Any:
    """Build a model with matrices so large that ZeRO-3 partitions them (above 100,000 elements)."""
    arch = replace(ARCH, hidden_size=320, intermediate_size=640, heads=4, kv_heads=4)
    return build_model(arch, VOCAB_SIZE, None, 1)


def learned(kind: str) -> Learned:
    if kind == "reward":
        model = classifier("llama")
        return model, RewardPairs(model.score), lambda step: rows_of(some_pairs(4, step))
    model = wide_model() if kind == "wide" else tiny_model()
    head = model.get_output_embeddings()
    if kind == "pretrain":
        rows = lambda step: documents(*(texts(4 * step + n, 2) for n in range(4)))  # noqa: E731
        return model, LanguageModeling(END, document_mask=True), rows
    if kind in ("sft", "wide"):
        rows = lambda step: conversations(*(texts(4 * step + n, 3) for n in range(4)), width=33)  # noqa: E731
        return model, AssistantTokens(head), rows
    if kind == "dpo":
        pairs = lambda step: rows_of(some_pairs(4, step))  # noqa: E731
        return model, PreferredAnswers(head, "orpo", 0.3, 0.0, 0.0), pairs
    policy = PolicyGradient(head, plain(AlgorithmConfig, "grpo", "grpo", kl="loss"), 0.7, 8)
    answers = [with_columns(sampled(4, step), model) for step in range(STEPS)]
    return model, policy, lambda step: answers[step]


Cases = tuple[tuple[str, int], ...]  # kinds of job, and their stages of ZeRO
FEW: Cases = (("wide", 3),)
EVERY: Cases = (("pretrain", 1), ("sft", 1), ("dpo", 1), ("rlhf", 1), ("reward", 0), ("wide", 3))


def train(rank: int, world: int, port: int, folder: Path, cases: Cases) -> None:
    """Train each case compiled and not; record the losses, and the number of graphs after each step."""
    group = join(rank, world, port, folder)
    import torch._dynamo
    from torch._dynamo.utils import counters

    from raymill.engine.trainer import Trainer

    real = torch.compile
    # Instead of compiling C++, what was captured is run as it is.
    torch.compile = lambda code, **settings: real(code, **settings | {"backend": "eager"})
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    found = {}
    for (kind, stage), compiled in ((case, on) for case in cases for on in (False, True)):
        torch._dynamo.reset()
        counters.clear()
        model, objective, rows = learned(kind)
        job = job_of(Case(stage, micro_batch=4, batch=4))
        job = replace(job, train=replace(job.train, compile=compiled))
        trainer = Trainer(job, planned(model), group)
        losses, graphs = [], []
        for step in range(STEPS):
            trainer.begin_micro_batch(last=True)
            losses_B = objective.losses(trainer.engine, rows(step), group.device)
            trainer.backward(losses_B.sum(), 100.0)
            trainer.update(1e-3)
            with evaluating(trainer.model):
                measured_B = objective.losses(trainer.model, rows(step).part(0, 3), group.device)
            losses += [float(losses_B.detach().sum()), float(measured_B.sum())]
            graphs.append(counters["stats"]["unique_graphs"])
        found[f"{kind} {stage} {compiled}"] = {"losses": losses, "graphs": graphs}
        trainer.engine.destroy()
    (folder / "found.json").write_text(json.dumps(found))
    os._exit(0)  # Gloo's threads may still be ending


@pytest.mark.parametrize("cases", [FEW, pytest.param(EVERY, marks=pytest.mark.slow)], ids=len)
def test_no_jobs_rows_compile_layers_anew(tmp_path: Path, cases: Cases) -> None:
    """Vary the trained positions and the lengths of rows."""
    run_ranks(train, (1, free_port(), tmp_path, cases), 1)
    found = json.loads((tmp_path / "found.json").read_text())
    for kind, stage in cases:
        plain, compiled = (found[f"{kind} {stage} {on}"] for on in (False, True))
        assert plain["graphs"] == [0] * STEPS
        graphs = compiled["graphs"]
        assert 0 < graphs[0] <= graphs[-1] == graphs[WARM] <= 6, (kind, stage, graphs)
        assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-4), (kind, stage)


def test_a_compile_is_told_as_a_phase_of_its_own(tmp_path: Path) -> None:
    """A compile interrupts a phase without counting as a beat, since the other ranks need not compile."""
    heartbeat, seen = Heartbeat(tmp_path, 0), []
    compiles = CompileTimer(heartbeat)

    def backend(graph: Any, _inputs: Any) -> Any:
        seen.append(read_heartbeats(tmp_path)[0])
        return graph.forward

    doubled = torch.compile(lambda x: x * 2, backend=backend)
    heartbeat.beat("data")
    heartbeat.beat("forward")
    before = read_heartbeats(tmp_path)[0]
    with compiles.recording():
        assert doubled(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
        after = read_heartbeats(tmp_path)[0]
        with uncompiled():
            doubled(torch.ones(3, 3, 3))
    assert before is not None and before == after
    assert seen == [before | {"phase": "compile"}]
    assert compiles.metrics()["perf/compile_s"] > 0
    assert compiles.metrics() == {}, "told once"
    doubled(torch.ones(2, 2, dtype=torch.long))
    assert len(seen) == 2 and read_heartbeats(tmp_path)[0] == after, "nobody is told any longer"


def test_what_is_not_made_of_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.compile=true: Linear isn't made of layers"):
        layers_of(torch.nn.Linear(2, 2))
    assert len(layers_of(tiny_model("gpt2"))) == len(layers_of(classifier("qwen3"))) == 2
