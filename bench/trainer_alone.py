"""Overhead of DeepSpeed and the trainer alone: one process without Ray, in turns with a bare loop.

    .venv/bin/python bench/trainer_alone.py

Compared with bench/overhead.py it shows the part of the overhead that comes from DeepSpeed; the rest comes from
Ray's own processes on a machine with few cores.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]

import torch
from servers import free_port
from raymill.config import load
from raymill.schema.jobs import PretrainJob
from raymill.engine.device import join_deepspeed
from raymill.engine.group import WorkerGroup
from raymill.engine.trainer import Trainer
from raymill.model.build import build_model, plan_model
from raymill.data.store.rows import Rows
from raymill.objective.language_modeling import LanguageModeling

ROWS, LENGTH, VOCAB, TURNS, WARM_UP = 16, 256, 4096, 16, 4
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.uint16)


def bare_step(
    job: PretrainJob, vocab_size: int, batches: Iterator[NDArray[Any]]
) -> Callable[[], None]:
    """Return the step of a plain loop over a job's model, without DeepSpeed, Ray and checks.

    In bf16 it updates a copy of the weights in fp32, as DeepSpeed does.
    """
    device = torch.device("cuda" if job.cluster.gpu else "cpu")
    model = build_model(job.arch, vocab_size, 0, 1).to(device)
    weights = list(model.parameters())
    updated = weights
    if job.train.precision == "bf16":
        updated = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
        model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(updated, lr=1e-3, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        batch = torch.from_numpy(next(batches).astype(np.int64)).to(device)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten()
        )
        loss.backward()
        if updated is not weights:
            for master, weight in zip(updated, weights, strict=True):
                assert weight.grad is not None, "every weight takes part in the loss"
                master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(updated, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if updated is not weights:
            with torch.no_grad():
                torch._foreach_copy_(weights, updated)
        loss.item()

    return step


def trainer_step(stage: int) -> Callable[[], None]:
    """Return the trainer's step under a ZeRO stage."""
    job = load("pretrain", ["experiment=bench", f"train.global_batch={ROWS}",
                            f"train.micro_batch={ROWS}", f"zero=stage{stage}"])  # fmt: skip
    group = WorkerGroup(torch.device("cpu"))
    trainer = Trainer(job, plan_model(job.arch, VOCAB, 0, 1), group)
    return step_of(trainer, TOKENS)


def step_of(trainer: Trainer, tokens: NDArray[Any]) -> Callable[[], None]:
    """Return an optimizer step on these rows in one micro-batch."""
    count, length = len(tokens), tokens.shape[1] - 1
    objective, rows = LanguageModeling(0), Rows(tokens, np.full(count, length + 1, np.int32))

    def step() -> None:
        trainer.begin_micro_batch(last=True)
        loss_sum = objective.losses(trainer.engine, rows, trainer.group.device).sum()
        trainer.backward(loss_sum, float(count * length))
        trainer.update(1e-3)
        float(loss_sum)

    return step


def join_alone() -> WorkerGroup:
    """Make this process a group of one."""
    os.environ.update(
        RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )  # fmt: skip
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.distributed.init_process_group("gloo")
    join_deepspeed(gpu=False)
    return WorkerGroup(torch.device("cpu"))


def main() -> None:
    join_alone()
    sides = {
        "bare": bare_step(load("pretrain", ["experiment=bench"]), VOCAB, itertools.repeat(TOKENS)),
        **{f"ZeRO-{stage}": trainer_step(stage) for stage in range(4)},
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(TURNS):
        for name, step in sides.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    bare = statistics.median(seconds["bare"][WARM_UP:])
    for name in sides:
        print(f"{name}: {bare / statistics.median(seconds[name][WARM_UP:]):.3f} of the bare loop")


if __name__ == "__main__":
    main()
