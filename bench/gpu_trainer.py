"""Benchmark on a GPU without Ray: the trainer compared with a bare PyTorch loop, the cost of deterministic
kernels, memory compared with the plan, and the cost of a checkpoint.

    python bench/gpu_trainer.py [--turns 12] [arch.hidden_size=… train.micro_batch=… zero.stage=…]

By default a Llama of 316 million parameters in bf16, on random tokens. The variants take turns, step by step.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]

import torch
from servers import free_port
from trainer_alone import bare_step, step_of
from raymill.checkpoint.background import BackgroundCommits
from raymill.checkpoint.commit import commit
from raymill.checkpoint.fence import raise_fence
from raymill.checkpoint.manifest import CheckpointManifest
from raymill.config import load
from raymill.engine.device import choose_device, device_memory, join_deepspeed
from raymill.engine.group import WorkerGroup
from raymill.engine.checkpoints import HostCopy
from raymill.engine.device import benchmark_peak_flops
from raymill.engine.trainer import Trainer
from raymill.model.build import plan_model
from raymill.plan.parameters import flops_per_token
from raymill.plan.report import memory_plan

VOCAB, LENGTH, WARM_UP = 32_000, 1024, 3
JOB = [
    "experiment=bench", "cluster=local_gpu", "train.precision=bf16", "zero=stage1",
    "arch.hidden_size=1024", "arch.layers=24", "arch.heads=16", "arch.kv_heads=16",
    "arch.intermediate_size=2816", f"tokenizer.vocab_size={VOCAB}", f"data.sequence_length={LENGTH}",
    "train.global_batch=16", "train.micro_batch=16", "arch.max_positions=1024",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("overrides", nargs="*", help="of jobs/pretrain.py")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench/gpu_trainer.py needs a GPU")
        return
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(free_port())
    device = choose_device(gpu=True)
    torch.distributed.init_process_group("nccl")
    join_deepspeed(gpu=True)
    job = load("pretrain", [*JOB, *arguments.overrides])
    count, length = job.train.micro_batch, job.data.sequence_length
    tokens = np.random.default_rng(0).integers(0, VOCAB, (count, length + 1)).astype(np.uint16)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {date.today()}")

    trainer = Trainer(job, plan_model(job.arch, VOCAB, 0, 1), WorkerGroup(device))
    step = step_of(trainer, tokens)
    for _ in range(WARM_UP):
        step()
    print(f"memory         {device_memory(device)['perf/device_peak_gib']:.2f} GiB at its peak")
    print(f"planned        {memory_plan(job, job.arch, VOCAB)}")
    saves(trainer, step)
    bare = bare_step(job, VOCAB, itertools.repeat(tokens))
    seconds: dict[tuple[str, bool], list[float]] = {}
    for _ in range(WARM_UP + arguments.turns):
        for (name, call), exact in itertools.product(
            (("trainer", step), ("bare", bare)), (True, False)
        ):
            torch.use_deterministic_algorithms(exact)
            seconds.setdefault((name, exact), []).append(timed(call))
    median = {key: statistics.median(values[WARM_UP:]) for key, values in seconds.items()}
    rate = {key: count * length / value for key, value in median.items()}
    peak = benchmark_peak_flops(device, torch.bfloat16)
    share = rate["trainer", True] * flops_per_token(job.arch, VOCAB, length) / peak
    print(f"tokens/s       {rate['trainer', True]:,.0f}: {share:.1%} of {peak / 1e12:.0f} TFLOP/s")
    print(
        f"bare loop      {rate['bare', True]:,.0f} tokens/s; "
        f"the trainer reaches {rate['trainer', True] / rate['bare', True]:.3f} of it"
    )
    for name in ("trainer", "bare"):
        cost = median[name, True] / median[name, False]
        print(f"deterministic  {cost:.3f} times the step of the fastest kernels ({name})")


def timed(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def saves(trainer: Trainer, step: Callable[[], None]) -> None:
    """Time a synchronous save, one in the background, and the steps meanwhile."""
    (ROOT / "storage").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "storage") as name:
        folder = Path(name)
        raise_fence(folder, 0)
        group = trainer.group.background_group()
        manifest = CheckpointManifest(1, 1, 1, 1, 1, {}, "", (), "", None, None, {})
        copy = HostCopy()
        # The first copy also allocates the buffers.
        copy.take([trainer])
        save = partial(commit, folder, manifest, trainer.checkpoint_layout())
        waited = timed(lambda: save(list(copy.take([trainer])), group))
        commits = BackgroundCommits(folder, group, lambda _: None)
        calm = [timed(step) for _ in range(20)]
        started = time.perf_counter()
        manifest = CheckpointManifest(2, 2, 2, 1, 1, {}, "", (), "", None, None, {})
        commits.start(manifest, trainer.checkpoint_layout(), copy.take([trainer]))
        stall = time.perf_counter() - started
        during = []
        while commits.busy:
            during.append(timed(step))
        outcome = commits.take_outcome(wait=True)
        assert outcome is not None and outcome.error is None, outcome
    usual = statistics.median(calm)
    print(
        f"checkpoint     {outcome.size / 1e9:.2f} GB; a synchronous save {waited:.3f} s; the stall "
        f"{stall:.3f} s, {stall / waited:.1%}"
    )
    print(
        f"steps          {usual:.3f} s; while a checkpoint is written {statistics.median(during):.3f} s, "
        f"{statistics.median(during) / usual:.2f} times ({len(during)} steps); written at "
        f"{outcome.size / outcome.seconds / 1e6:,.0f} MB/s"
    )


if __name__ == "__main__":
    main()
