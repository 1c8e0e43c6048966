"""Gain from `train.compile`: tokens/s of a forward and backward pass on one core, compiled and not, in turns.

    .venv/bin/python bench/compile.py

The model is `arch=nano`. The rows and their masks change from step to step, as in a run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform")]

import torch

from raymill.config import load
from raymill.data.store.rows import Rows
from raymill.engine.compilation import compile_layers, layers_of
from raymill.model.build import build_model
from raymill.objective.language_modeling import AssistantTokens
from raymill.objective.language_modeling import LanguageModeling
from raymill.objective.objective import Objective
from raymill.objective.pairs import PreferredAnswers

ROWS, LENGTH, VOCAB, TURNS, WARM_UP = 8, 256, 2048, 16, 4
DOCUMENT = 67  # tokens of a document, or of a conversation
CPU = torch.device("cpu")


def text(step: int) -> Rows:
    """Return rows of documents, each of which starts with token 0."""
    tokens = np.random.default_rng(step).integers(1, VOCAB, (ROWS, LENGTH + 1)).astype(np.uint16)
    tokens[:, ::DOCUMENT] = 0
    return Rows(tokens, np.full(ROWS, LENGTH + 1, np.int32))


def chat(step: int) -> Rows:
    """Return rows of conversations, not quite full; a third of their tokens are learned from."""
    drawn, rows = np.random.default_rng(step), text(step)
    return Rows(
        rows.tokens,
        rows.length - drawn.integers(0, 20, ROWS).astype(np.int32),
        weight=(drawn.random(rows.tokens.shape) < 1 / 3).astype(np.float32),
        segment=(np.cumsum(rows.tokens == 0, axis=1) - 1).astype(np.uint16),
    )


def pairs(step: int) -> Rows:
    """Return rows of two conversations, whose second halves are answers."""
    drawn, rows = np.random.default_rng(step), text(step)
    first = drawn.integers(60, LENGTH // 2, ROWS)
    length = first + drawn.integers(60, LENGTH // 2, ROWS)
    column = np.arange(LENGTH + 1)
    second = column >= first[:, None]
    answer = np.where(second, column >= (first + 30)[:, None], column >= (first // 2)[:, None])
    return Rows(
        rows.tokens,
        length.astype(np.int32),
        weight=(answer & (column < length[:, None])).astype(np.float32),
        segment=second.astype(np.uint16),
        record=np.arange(ROWS),
        margin=np.zeros(ROWS, np.float32),
    )


JOBS: dict[str, tuple[Callable[[Any], Objective], Callable[[int], Rows]]] = {
    "pretraining": (lambda model: LanguageModeling(0), text),
    "pretraining, documents kept apart": (lambda model: LanguageModeling(0, True), text),
    "fine-tuning": (lambda model: AssistantTokens(model.get_output_embeddings()), chat),
    "pairs (orpo)": (
        lambda model: PreferredAnswers(model.get_output_embeddings(), "orpo", 0.1, 0.0, 0.0),
        pairs,
    ),
}


def seconds(model: Any, objective: Objective, rows: Rows) -> float:
    """Return the CPU time of one forward and backward pass."""
    started = time.process_time()
    (objective.losses(model, rows, CPU).sum() / objective.weight(rows)).backward()
    model.zero_grad()
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    arch = load("pretrain", ["arch=nano"]).arch
    plain, compiled = (build_model(arch, VOCAB, 0, 1) for _ in range(2))
    compile_layers(layers_of(compiled))
    for name, (objective_of, rows_of) in JOBS.items():
        rates: dict[bool, list[float]] = {False: [], True: []}
        started = time.perf_counter()
        for step in range(WARM_UP + TURNS):
            if step == WARM_UP:
                first = time.perf_counter() - started
            rows = rows_of(step)
            for on, model in ((False, plain), (True, compiled)):
                took = seconds(model, objective_of(model), rows)
                rates[on].append(int(rows.length.sum()) / took)
        without, with_ = (statistics.median(rates[on][WARM_UP:]) for on in (False, True))
        print(
            f"{name}: {with_:,.0f} tokens/s compiled, {without:,.0f} not: {with_ / without:.2f} times "
            f"(first {WARM_UP} steps of both: {first:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
