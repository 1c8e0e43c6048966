"""What a checkpoint costs: seconds that the loop stands still, against a save that it waits for; the steps
meanwhile, against those that follow it before the next; and bytes/s against what `dd conv=fsync` reaches.

    .venv/bin/python bench/checkpoint.py [--steps 144] [--every 20] [cluster=local_gpu …]

One run of jobs/pretrain.py with a model of about 24 million parameters (290 MB of state). Its last checkpoint
is one that the loop waits for, as every one of a synchronous save would be. Needs prepared data
(make bench-models).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import time
from pathlib import Path

from pretraining import ROOT, journal_of, storage

MODEL = [
    "experiment=bench", "arch.hidden_size=512", "arch.layers=6", "arch.heads=8", "arch.kv_heads=8",
    "arch.intermediate_size=1408", "train.global_batch=4", "train.micro_batch=4",
    "evaluation.every=0", "evaluation.rows=4", "evaluation.prompts=[]", "evaluation.sample_every=0",
    "tracking=none",
]  # fmt: skip
WARM_UP = 8  # steps not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=144)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("overrides", nargs="*", help="of jobs/pretrain.py")
    arguments = parser.parse_args()
    with storage(ROOT / "storage") as folder:
        length = (f"train.steps={arguments.steps}", f"checkpoint.every={arguments.every}")
        events = journal_of(folder, "saves", *MODEL, *length, *arguments.overrides)
        written = dd(folder, 1000)
    saves = [event for event in events if event["kind"] == "checkpoint"]
    steps = [event for event in events if event["kind"] == "step" and event["step"] > WARM_UP]
    waited, behind = saves[-1]["stall_s"], statistics.median(s["stall_s"] for s in saves[:-1])
    began = {event["step"]: event["time"] for event in events if event["kind"] == "step"}
    during, ratios = 0, []
    for save, following in itertools.pairwise(saves):
        interval = [e for e in steps if save["step"] < e["step"] <= following["step"]]
        written_by = began[save["step"]] + save["stall_s"] + save["seconds"]
        slow = [e["perf/step_s"] for e in interval if e["time"] - e["perf/step_s"] < written_by]
        calm = [e["perf/step_s"] for e in interval if e["time"] - e["perf/step_s"] >= written_by]
        if slow and len(calm) > 2:
            during += len(slow)
            ratios.append(statistics.median(slow) / statistics.median(calm))
    usual = statistics.median(event["perf/step_s"] for event in steps)
    speed = saves[0]["bytes"] / statistics.median(s["seconds"] for s in saves[:-1])
    print(f"state          {saves[0]['bytes'] / 1e6:,.0f} MB")
    print(
        f"stall          {behind:.3f} s, {behind / waited:.1%} of a save that is waited for ({waited:.3f} s)"
    )
    print(
        f"steps          {usual:.3f} s; while one is written {statistics.median(ratios):.2f} times those "
        f"after it ({min(ratios):.2f} to {max(ratios):.2f}; {len(ratios)} saves, {during} steps)"
    )
    print(
        f"written at     {speed / 1e6:,.0f} MB/s with its sha256, behind the training; waited for "
        f"{saves[-1]['bytes'] / saves[-1]['seconds'] / 1e6:,.0f} MB/s; dd conv=fsync {written / 1e6:,.0f} MB/s"
    )


def dd(folder: Path, megabytes: int) -> float:
    """Bytes a second that the disk takes."""
    began = time.perf_counter()
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={folder / 'dd'}", "bs=1M", f"count={megabytes}", "conv=fsync"],
        check=True, capture_output=True,
    )  # fmt: skip
    return megabytes * 2**20 / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
