"""Ends without a last checkpoint, through the command line: errors that another start would meet again, a stop
whose workers fail, one before the first step. The run says why, and what would help."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from driver import job
from driver.conftest import Workshop
from faults.injector import happened, with_faults
from raymill.report.audit import audit

pytestmark = [pytest.mark.integration, pytest.mark.chaos]
STEPS, EVERY, BAD = 40, 10, 15
COMMON = (
    "tracking=none", f"train.steps={STEPS}", f"checkpoint.every={EVERY}", "evaluation.every=0",
    "run.workers=2", "zero=stage1",
)  # fmt: skip


def run(workshop: Workshop, name: str, folder: Path, *faults: str) -> tuple[int, str]:
    place = {"rank": 1, "step": BAD, "phase": "forward"}
    injected = with_faults(folder, *({"what": what, **place} for what in faults))
    return job.run_alone(
        "pretrain",
        *workshop.overrides,
        *COMMON,
        f"run.name={name}",
        cwd=workshop.root,
        env=injected,
    )


def test_out_of_memory(workshop: Workshop, tmp_path: Path) -> None:
    """The run isn't tried again unchanged: the planned memory and the settings that lower it are shown."""
    code, output = run(workshop, "memory", tmp_path, "memory")
    assert code == 1
    assert happened(tmp_path) == 1
    assert "out of memory: rank 1: " in output
    assert "planned: " in output and "GiB" in output
    assert "raise zero.stage (now 1) or run.workers" in output
    assert "set train.activation_checkpointing=true" in output
    assert "Traceback" not in output
    told = audit(workshop.run_dir("memory"))
    assert len(told.attempts) == 1 and told.problems == []


def test_the_same_exception_at_the_same_step_twice(workshop: Workshop, tmp_path: Path) -> None:
    """One more start meets the error again, there is no third; once it is fixed, the same command continues."""
    code, output = run(workshop, "twice", tmp_path, "raise", "raise", "raise")
    assert code == 1
    assert happened(tmp_path) == 2
    assert f"trying again in 1 s from step {EVERY}" in output
    assert f"the same error at step {BAD} as before" in output
    assert f"injected at step {BAD}, forward" in output
    assert "Traceback" not in output
    run_dir = workshop.run_dir("twice")
    code, output = run(workshop, "twice", tmp_path)
    assert code == 0, output
    assert f"resumed at step {EVERY}" in output
    told = audit(run_dir)
    assert len(told.attempts) == 3 and told.problems == []


def test_a_stop_whose_workers_are_lost(workshop: Workshop, tmp_path: Path) -> None:
    """Ctrl-C, and a rank that is killed while it writes the checkpoint: no success is reported."""
    env = with_faults(tmp_path, {"what": "kill", "rank": 1, "write": 1})
    process = job.start(
        "pretrain", *workshop.overrides, *COMMON, "checkpoint.every=1000", "run.name=broken",
        "train.steps=1000", cwd=workshop.root, env=env,
    )  # fmt: skip
    job.interrupt_after(process, workshop.run_dir("broken"), 5, signal.SIGINT)
    output, _ = process.communicate(timeout=job.TIMEOUT_S)
    assert process.returncode == 1, output
    assert happened(tmp_path) == 1
    assert "stopped by a failure, before a checkpoint could be committed" in output
    assert "work is repeated from the beginning" in output
    assert "trying again" not in output and "after a checkpoint" not in output
    assert "Traceback" not in output


def test_a_stop_before_the_first_step(workshop: Workshop, tmp_path: Path) -> None:
    """SIGTERM during the first evaluation: no step is made for it, and nothing is left to commit."""
    run_dir = workshop.run_dir("early")
    hold = {"what": "hold", "until": f"{run_dir}/stop-requested*", "rank": 0, "phase": "evaluate"}
    process = job.start(
        "pretrain", *workshop.overrides, *COMMON, "evaluation.every=10", "run.name=early",
        cwd=workshop.root, env=with_faults(tmp_path, hold),
    )  # fmt: skip
    job.wait_for(process, lambda: happened(tmp_path) == 1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=job.TIMEOUT_S)
    assert process.returncode == 85, output
    assert "preempted, resume with the same command" in output and "Traceback" not in output
    assert job.events(run_dir, "step") == job.events(run_dir, "checkpoint") == []
    code, output = run(workshop, "early", tmp_path)
    assert code == 0, output
