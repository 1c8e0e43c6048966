"""A run whose parts are killed, stopped, drained, taken over or moved to another number of workers is the run
that never was."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from driver import job
from driver.conftest import Workshop
from driver.test_resume import wait_for_no_orphans
from faults.injector import happened, with_faults

pytestmark = pytest.mark.integration
STEPS, EVERY = 24, 5
COMMON = (
    "tracking=none", f"train.steps={STEPS}", f"checkpoint.every={EVERY}", "evaluation.every=0",
    "checkpoint.keep_last=100",
)  # fmt: skip


def found(run_dir: Path) -> dict[int, tuple[float, float, str]]:
    """Step → what must be equal, as last written."""
    return {
        event["step"]: (event["train/loss"], event["train/grad_norm"], event["sample_ids_sha256"])
        for event in job.events(run_dir, "step")
    }


def history(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def through(workshop: Workshop) -> dict[int, tuple[float, float, str]]:
    """An uninterrupted run, on two workers."""
    code, output = run(workshop, "two", "run.workers=2")
    assert code == 0, output
    steps = found(workshop.run_dir("two"))
    assert sorted(steps) == list(range(1, STEPS + 1))
    return steps


def run(workshop: Workshop, name: str, *more: str) -> tuple[int, str]:
    return job.run(
        "pretrain", *workshop.overrides, *COMMON, f"run.name={name}", *more, cwd=workshop.root
    )


def test_killed_stopped_and_taken_over(
    workshop: Workshop, through: dict[int, tuple[float, float, str]], tmp_path: Path
) -> None:
    """A second run of the same name is refused, a worker is killed, another hangs, and SIGTERM ends the run
    with a checkpoint; the same command completes it."""
    settings = ("run.workers=2", "watchdog.timeout_s=12")
    run_dir = workshop.run_dir("storm")
    faults = with_faults(
        tmp_path,
        {"what": "kill", "rank": 1, "step": 11, "phase": "forward"},
        {"what": "stop", "rank": 0, "step": 12, "phase": "forward"},
        {
            "what": "hold",
            "until": f"{run_dir}/stop-requested*",
            "rank": 0,
            "step": 17,
            "phase": "forward",
        },
    )
    process: subprocess.Popen[str] = job.start(
        "pretrain", *workshop.overrides, *COMMON, "run.name=storm", *settings, cwd=workshop.root,
        env=faults,
    )  # fmt: skip
    job.wait_for_hold(process, run_dir)
    code, output = run(workshop, "storm", *settings)
    assert code == 1
    assert f"run storm is held by process {process.pid} of " in output
    assert "Traceback" not in output
    job.wait_for(process, lambda: happened(tmp_path) == 3)  # it is held
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=job.TIMEOUT_S)
    assert process.returncode == 85, output
    assert "preempted, resume with the same command:" in output
    assert "made no progress for" in output
    assert "its process was stopped; its stack is in" in output
    assert "Traceback" not in output
    assert happened(tmp_path) == 3
    stack = next((run_dir / "logs").glob("*.stack")).read_text()
    assert "Thread" in stack
    wait_for_no_orphans(run_dir)
    last = job.events(run_dir, "step")[-1]["step"]
    assert job.events(run_dir, "checkpoint")[-1]["step"] == last < STEPS
    code, output = run(workshop, "storm", *settings)
    assert code == 0, output
    assert found(run_dir) == through, "bit-equal, with the same number of workers"
    check_attempts(run_dir, EVERY)
    assert all(event["step"] >= EVERY for event in job.events(run_dir, "attempt")[1:])
    states = [line["state"] for line in history(run_dir)]
    assert states[0] == "starting"
    assert states.count("recovering") >= 2
    assert "draining" in states
    assert states[-2:] == ["committing", "finished"]
    causes = [line["cause"] for line in history(run_dir) if "cause" in line]
    assert causes == ["lost", "lost"]


def check_attempts(run_dir: Path, every: int, lost: int = 0) -> None:
    """Each attempt's first step follows the checkpoint it resumed from, all of which are kept. That is the
    last one before where the attempt before was or, where that one was still being written, the one before
    it; `lost` in all may be further back, since they were damaged or not written."""
    attempts = {event["attempt"]: event["step"] for event in job.events(run_dir, "attempt")}
    first: dict[int, int] = {}
    for event in job.events(run_dir, "step"):
        first.setdefault(event["attempt"], event["step"])
    assert {number: step + 1 for number, step in attempts.items() if number in first} == first
    # Not by the event log: a driver killed after a commit can't report it. Damaged checkpoints are renamed.
    committed = {int(path.name[5:13]) for path in (run_dir / "checkpoints").glob("step-*")}
    assert set(attempts.values()) <= {0} | committed
    reached = {
        number: max((e["step"] for e in job.events(run_dir, "step") if e["attempt"] == number), default=step)
        for number, step in attempts.items()
    }  # fmt: skip
    back = [reached[number - 1] - step for number, step in attempts.items() if number > 1]
    assert sum(max(0, steps - 2 * every) for steps in back) <= lost * every, back
