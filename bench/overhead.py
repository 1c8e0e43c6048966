"""Overhead of the platform: tokens/s of jobs/pretrain.py over those of a bare PyTorch loop, in one run.

    make bench   or   .venv/bin/python bench/overhead.py [--rounds 3] [--steps 30] [cluster=local_gpu …]

The same model, rows, batch and threads on both sides; the two sides take turns, and the result is the
median of the rounds' ratios, since machines are noisy. Needs prepared data (make bench-models).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time

from pretraining import ROOT, run_events, storage

sys.path.insert(0, str(ROOT / "platform"))
OVERRIDES = [
    "experiment=bench", "train.global_batch=16", "train.micro_batch=16", "evaluation.every=0",
    "evaluation.rows=16", "evaluation.prompts=[]", "checkpoint.every=100000", "tracking=none",
]  # fmt: skip
WARM_UP = 8  # steps not counted
PHASES = ("data_wait", "forward", "backward", "optimizer")


def bare(steps: int, overrides: list[str]) -> float:
    """Return the median seconds per step of a plain loop without DeepSpeed, Ray and checks."""
    import numpy as np
    import torch

    from raymill.config import load
    from raymill.data.store.location import prepared_folder
    from raymill.data.store.manifest import load_prepared
    from raymill.data.store.shards import read_row_group
    from trainer_alone import bare_step

    job = load("pretrain", [*OVERRIDES, *overrides])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    folder = prepared_folder(job.data, job.tokenizer, job.run.seed, job.storage.root)
    prepared = load_prepared(folder)
    shard = prepared.manifest.splits["train"].shards[0]
    path = prepared.shard_path(shard)
    rows = np.concatenate(
        [read_row_group(path, shard, group, prepared.manifest.dtype).tokens for group in range(8)]
    )
    batch = job.train.micro_batch
    batches = (
        rows[(index * batch) % (len(rows) - batch + 1) :][:batch] for index in itertools.count()
    )
    step = bare_step(job, prepared.manifest.tokenizer.vocab_size, batches)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM_UP:])


def platform(stage: int, steps: int, overrides: list[str]) -> dict[str, float]:
    """Return the median seconds of the job's step and of its phases."""
    with storage() as root:
        events = run_events(
            root, "bench", *OVERRIDES, f"zero=stage{stage}", f"train.steps={steps}",
            "schedule.warmup_steps=1", *overrides,
        )  # fmt: skip
    events = [event for event in events if event["kind"] == "step"][WARM_UP:]
    median = {
        phase: statistics.median(event[f"perf/{phase}_s"] for event in events)
        for phase in ("step", *PHASES)
    }
    return median | {"rest": median["step"] - sum(median[phase] for phase in PHASES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--bare", action="store_true", help="only print the bare loop's seconds")
    parser.add_argument("overrides", nargs="*", help="of jobs/pretrain.py")
    arguments = parser.parse_args()
    overrides = arguments.overrides
    if arguments.bare:
        print(bare(arguments.steps, overrides))
        return
    ratios: dict[int, list[float]] = {0: [], 1: []}
    shares: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    for _ in range(arguments.rounds):
        for stage in ratios:
            result = subprocess.run(
                [sys.executable, __file__, "--bare", "--steps", str(arguments.steps), *overrides],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            reference = float(result.stdout.split()[-1])
            ours = platform(stage, arguments.steps, overrides)
            ratios[stage].append(reference / ours["step"])
            shares[stage].append({name: value / ours["step"] for name, value in ours.items()})
    print("tokens/s over a bare PyTorch loop, same model, rows, batch and threads")
    for stage, values in ratios.items():
        parts = ", ".join(
            f"{name} {statistics.median(share[name] for share in shares[stage]):.1%}"
            for name in (*PHASES, "rest")
        )
        print(
            f"  ZeRO-{stage}: {statistics.median(values):.3f} "
            f"(rounds {', '.join(f'{value:.3f}' for value in values)}); of a step: {parts}"
        )


if __name__ == "__main__":
    main()
