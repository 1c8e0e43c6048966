"""Cost to training of a tracking server that is down, refuses, or hangs: median step time compared with a run
without tracking, in turns.

    .venv/bin/python bench/tracking.py [--turns 3] [--steps 300]

Runs of jobs/pretrain.py with a tiny model on one worker, whose steps take milliseconds, so that
any disturbance shows. Needs prepared data (make bench-models).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from pretraining import ROOT, run_events, storage

sys.path.insert(0, str(ROOT / "tests"))

from servers import free_port, hanging_server, refusing_server

MODEL = [
    "experiment=bench", "arch.hidden_size=128", "arch.layers=2", "arch.heads=4", "arch.kv_heads=4",
    "arch.intermediate_size=384", "train.global_batch=4", "train.micro_batch=4", "train.threads=1",
    "evaluation.every=0", "evaluation.rows=4", "evaluation.prompts=[]", "evaluation.sample_every=0",
    "checkpoint.every=1000000", "tracking.register=false", "tracking.flush_timeout_s=1",
]  # fmt: skip
WARM_UP = 100  # steps not counted, during which MLflow is imported, which takes a core for seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = {"down": [], "refuses": [], "hangs": []}
    with (
        storage(ROOT / "storage") as folder,
        refusing_server() as refused,
        hanging_server() as hung,
    ):
        ports = {"down": free_port(), "refuses": refused, "hangs": hung}
        for turn in range(arguments.turns):
            for kind, port in ports.items():
                without = step_s(folder, f"none-{turn}-{kind}", arguments.steps, "tracking=none")
                uri = f"tracking.uri=http://127.0.0.1:{port}"
                with_it = step_s(folder, f"{kind}-{turn}", arguments.steps, "tracking=server", uri)
                ratios[kind].append(with_it / without)
                print(
                    f"{kind:<9}{with_it * 1e3:.2f} ms per step, without tracking {without * 1e3:.2f}"
                )
    for kind, values in ratios.items():
        print(f"{kind:<9}{statistics.median(values) - 1:+.1%} (median of {len(values)} turns)")


def step_s(folder: Path, name: str, steps: int, *tracking: str) -> float:
    """Return the median seconds per step of one run."""
    events = run_events(folder, name, *MODEL, *tracking, f"train.steps={steps}")
    seconds = [event["perf/step_s"] for event in events if event["kind"] == "step"]
    return statistics.median(seconds[WARM_UP:])


if __name__ == "__main__":
    main()
