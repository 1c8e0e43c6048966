"""Cost of a checkpoint: the stall of the loop, compared with a synchronous save; the steps while it is written,
compared with the steps after it; and its bytes/s, compared with `dd conv=fsync`.

    .venv/bin/python bench/checkpoint.py [--steps 144] [--every 20] [cluster=local_gpu …]

One run of jobs/pretrain.py with a model of about 24 million parameters (290 MB of state). The loop waits for
its last checkpoint, as it would for every synchronous save. Needs prepared data (make bench-models).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import time
from pathlib import Path

from pretraining import ROOT, run_events, storage

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
        events = run_events(folder, "saves", *MODEL, *length, *arguments.overrides)
        written = dd(folder, 1000)
    saves = [event for event in events if event["kind"] == "checkpoint"]
    steps = [event for event in events if event["kind"] == "step" and event["step"] > WARM_UP]
    waited, behind = saves[-1]["stall_s"], statistics.median(s["stall_s"] for s in saves[:-1])
    ends = {event["step"]: event["time"] for event in events if event["kind"] == "step"}
    during, ratios = 0, []
    for save, following in itertools.pairwise(saves):
        interval = [e for e in steps if save["step"] < e["step"] <= following["step"]]
        written_by = ends[save["step"]] + save["stall_s"] + save["seconds"]
        slow = [e["perf/step_s"] for e in interval if e["time"] - e["perf/step_s"] < written_by]
        calm = [e["perf/step_s"] for e in interval if e["time"] - e["perf/step_s"] >= written_by]
        if slow and len(calm) > 2:
            during += len(slow)
            ratios.append(statistics.median(slow) / statistics.median(calm))
    usual = statistics.median(event["perf/step_s"] for event in steps)
    speed = saves[0]["bytes"] / statistics.median(s["seconds"] for s in saves[:-1])
    print(f"state          {saves[0]['bytes'] / 1e6:,.0f} MB")
    print(
        f"stall          {behind:.3f} s, {behind / waited:.1%} of a synchronous save ({waited:.3f} s)"
    )
    print(
        f"steps          {usual:.3f} s; while a checkpoint is written, {statistics.median(ratios):.2f} times "
        f"those after it ({min(ratios):.2f} to {max(ratios):.2f}; {len(ratios)} saves, {during} steps)"
    )
    print(
        f"written at     {speed / 1e6:,.0f} MB/s with its sha256, in the background; synchronously "
        f"{saves[-1]['bytes'] / saves[-1]['seconds'] / 1e6:,.0f} MB/s; dd conv=fsync {written / 1e6:,.0f} MB/s"
    )


def dd(folder: Path, megabytes: int) -> float:
    """Return the disk's rate of writing in bytes per second."""
    started = time.perf_counter()
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={folder / 'dd'}", "bs=1M", f"count={megabytes}", "conv=fsync"],
        check=True, capture_output=True,
    )  # fmt: skip
    return megabytes * 2**20 / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
