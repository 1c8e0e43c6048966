"""Jobs on a GPU, through the command line."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from driver import job
from driver.conftest import Workshop
from driver.test_pipeline import overrides, write_inputs
from driver.test_resume import OFF, losses, wait_for_no_orphans

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.integration,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
GPU = ("cluster=local_gpu", "cluster.cpus_per_worker=1")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kill_9_of_the_driver_and_bit_equal_from_there(workshop: Workshop, precision: str) -> None:
    def command(name: str) -> tuple[str, ...]:
        return (*workshop.overrides, *OFF, *GPU, f"train.precision={precision}",
                f"run.name={precision}-{name}")  # fmt: skip

    through = job.start("pretrain", *command("through"), cwd=workshop.root)
    process = job.start("pretrain", *command("killed"), cwd=workshop.root)
    run_dir = workshop.run_dir(f"{precision}-killed")
    job.interrupt_after(process, run_dir, 120, signal.SIGKILL)
    process.communicate(timeout=job.TIMEOUT_S)
    output, _ = through.communicate(timeout=job.TIMEOUT_S)
    assert through.returncode == 0, output
    wait_for_no_orphans(run_dir)
    code, output = job.run_alone("pretrain", *command("killed"), cwd=workshop.root)
    assert code == 0, output
    assert "resumed at step" in output
    assert losses(run_dir) == losses(workshop.run_dir(f"{precision}-through"))
    assert job.events(run_dir, "step")[-1]["perf/device_peak_gib"] > 0


def test_memory_that_runs_out_says_what_to_change(workshop: Workshop) -> None:
    code, output = job.run_alone(
        "pretrain", *workshop.overrides, *OFF, *GPU, "run.name=large", "arch.hidden_size=4096",
        "arch.layers=12", "train.micro_batch=2048", "train.global_batch=2048", cwd=workshop.root,
    )  # fmt: skip
    assert code != 0
    assert "Traceback" not in output
    assert "out of memory" in output.lower(), output
    assert "train.micro_batch" in output, output


def test_text_to_aligned_assistant(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    code, output = job.run_alone(
        "pipeline", *overrides(tmp_path), *GPU, "train.precision=bf16",
        "sft.train.precision=bf16", "reward.train.precision=bf16", "rlhf.train.precision=bf16",
        "rlhf.rollout.actors=0", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, output
    assert "registered models:/assistant/4 as assistant@aligned" in output
    for name in ("whole", "whole-sft"):
        summary = json.loads((tmp_path / "storage" / "runs" / name / "summary.json").read_text())
        assert summary["registered"].startswith("models:/assistant/")
