"""Exact resume, through the command line: stopped cleanly, by Ctrl-C, or killed, a run continues as
the run that was never stopped."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from driver import job
from driver.conftest import Workshop
from faults.injector import happened, with_faults

pytestmark = pytest.mark.integration
STEPS = 24
OFF = (
    "tracking=none", f"train.steps={STEPS}", "checkpoint.every=5", "evaluation.every=0",
    "checkpoint.keep_every=10",
)  # fmt: skip


def losses(run_dir: Path) -> dict[int, tuple[float, float, str]]:
    """Step → what must be bit-equal; of a step that was replayed, every occurrence must agree."""
    found: dict[int, tuple[float, float, str]] = {}
    for event in job.events(run_dir, "step"):
        value = (event["train/loss"], event["train/grad_norm"], event["sample_ids_sha256"])
        assert found.setdefault(event["step"], value) == value, event
    return found


@pytest.fixture(scope="module")
def uninterrupted(workshop: Workshop) -> dict[int, tuple[float, float, str]]:
    code, output = job.run(
        "pretrain", *workshop.overrides, *OFF, "run.name=through", cwd=workshop.root
    )
    assert code == 0, output
    assert "Traceback" not in output
    found = losses(workshop.run_dir("through"))
    assert sorted(found) == list(range(1, STEPS + 1))
    return found


def first_step(run_dir: Path, attempt: int) -> int:
    steps = job.events(run_dir, "step")
    return next(int(event["step"]) for event in steps if event["attempt"] == attempt)


def test_ctrl_c_commits_and_kill_9_of_the_driver_loses_at_most_an_interval(
    workshop: Workshop, uninterrupted: dict[int, tuple[float, float, str]], tmp_path: Path
) -> None:
    """Ctrl-C stops a run at step 7, and says how to resume; the same command is killed at step 14, and
    completes it when it is run once more. Each time its first step is the last committed one + 1, and all is
    equal."""
    command = ("pretrain", *workshop.overrides, *OFF, "run.name=stopped")
    run_dir = workshop.run_dir("stopped")
    until = f"{run_dir}/stop-requested*"
    faults = with_faults(
        tmp_path,
        {"what": "hold", "until": until, "rank": 0, "step": 7, "phase": "forward"},
        {"what": "sleep", "rank": 0, "step": 14, "phase": "forward"},
    )
    process = job.start(*command, cwd=workshop.root, env=faults)
    job.wait_for(process, lambda: happened(tmp_path) == 1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=job.TIMEOUT_S)
    assert process.returncode == 0, output
    assert "stopped after a checkpoint" in output
    assert "run.name=stopped" in output.splitlines()[-1], "the resuming command comes last"
    last = job.events(run_dir, "step")[-1]["step"]
    assert job.events(run_dir, "checkpoint")[-1]["step"] == last < 14

    process = job.start(*command, cwd=workshop.root, env=faults)
    # It is committed while training continues, so it may take longer than the steps after it.
    job.wait_for(process, (run_dir / "checkpoints" / "step-00000010").exists)
    output = job.kill_after(process, run_dir, 13)
    assert f"resumed at step {last}" in output
    assert first_step(run_dir, 2) == last + 1
    committed = max(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step-????????"))
    assert committed == 10, "at most an interval is lost"
    code, output = job.run(*command, cwd=workshop.root)
    assert code == 0, output
    assert f"resumed at step {committed}" in output
    assert first_step(run_dir, 3) == committed + 1
    assert losses(run_dir) == uninterrupted
    assert (run_dir / "summary.json").exists()


def wait_for_no_orphans(run_dir: Path) -> None:
    """Every process that has the run's files open ends by itself within seconds."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        holding = []
        for process in psutil.process_iter():
            try:
                if any(file.path.startswith(str(run_dir)) for file in process.open_files()):
                    holding.append(process)
            except psutil.Error:
                continue
        if not holding:
            return
        time.sleep(0.2)
    raise AssertionError(f"still running: {holding}")


def test_contradictions_and_damage_are_refused_by_name(
    workshop: Workshop, uninterrupted: dict[int, tuple[float, float, str]]
) -> None:
    again = (*workshop.overrides, *OFF, "run.name=through")
    code, output = job.run("pretrain", *again, "optim.learning_rate=0.5", cwd=workshop.root)
    assert code == 2
    assert "optim.learning_rate=0.5: the checkpoint was trained with 0.003" in output
    code, output = job.run("pretrain", *again, cwd=workshop.root)
    assert code == 0
    assert f"is finished at step {STEPS}" in output
    assert "add to its command: run.name=… run.from=through@15 train.steps=…" in output
    code, output = job.run("pretrain", *again, f"train.steps={STEPS + 10}", cwd=workshop.root)
    assert code == 2
    assert "would jump from 0% of its peak to 100% after step 24; continue from" in output
    assert "run.from=through@15" in output


def test_a_fork_starts_from_the_other_runs_step(
    workshop: Workshop, uninterrupted: dict[int, tuple[float, float, str]]
) -> None:
    code, output = job.run(
        "pretrain", *workshop.overrides, *OFF, "run.name=fork", "run.from=through@10",
        "optim.learning_rate=1e-4", cwd=workshop.root,
    )  # fmt: skip
    assert code == 0, output
    steps = job.events(workshop.run_dir("fork"), "step")
    assert [event["step"] for event in steps] == list(range(11, STEPS + 1))
    assert steps[0]["train/loss"] == uninterrupted[11][0], "same weights, same data"
    assert steps[1]["train/loss"] != uninterrupted[12][0], "another learning rate"
