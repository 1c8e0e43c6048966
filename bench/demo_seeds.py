"""Alignment of the demonstration with other seeds: the gain of each over the same fine-tuned model.

    .venv/bin/python bench/demo_seeds.py [seeds, default 2 3]

Needs the runs of `make demo`. Each seed is a run of its own, `demo-rlhf-<seed>`, which resumes if it was
stopped; its answers to held-out questions are compared as in the demonstration.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raymill.data.demo.conversations import conversations
from raymill.demo.figures import example_order, gain
from raymill.demo.stage_model import StageModel

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "storage" / "runs"


def aligned(seed: int) -> dict[str, float]:
    """Train with a seed and return the metrics of the finished run."""
    name = f"demo-rlhf-{seed}"
    subprocess.run(
        [sys.executable, "jobs/rlhf.py", "experiment=rlhf_demo", f"run.name={name}", f"run.seed={seed}",
         f"parent={RUNS / 'demo-sft' / 'export'}", f"reward.model={RUNS / 'demo-reward' / 'export'}",
         "tracking=none"],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    metrics: dict[str, float] = json.loads((RUNS / name / "summary.json").read_text())["figures"]
    return metrics


def main() -> int:
    pretrained = json.loads((RUNS / "demo" / "summary.json").read_text())
    config = yaml.safe_load((RUNS / "demo" / "config.yaml").read_text())
    fraction, seed = config["data"]["validation"]["fraction"], config["run"]["seed"]
    held_out = [entry for entry in conversations(fraction, seed) if entry.held_out]
    order = example_order(held_out, pretrained["data_digests"][0], seed)
    before = StageModel.load(RUNS / "demo-sft" / "export")
    for number in map(int, sys.argv[1:] or ["2", "3"]):
        metrics = aligned(number)
        after = StageModel.load(RUNS / f"demo-rlhf-{number}" / "export")
        result = gain({"sft": before, "aligned": after}, held_out, order, seed)
        mean, low, high = result.interval
        print(
            f"seed {number}: {result.before:.3f} -> {result.after:.3f}, gain {mean:+.3f} "
            f"({low:+.3f} to {high:+.3f}), {result.share:.0%} of best of 8; "
            + ", ".join(
                f"{key} {value:.2f}" for key, value in metrics.items() if "kl" in key.lower()
            ),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
