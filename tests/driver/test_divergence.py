"""A loss that isn't a number on one rank: what each policy makes of it, through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from driver import job
from driver.conftest import Workshop
from driver.test_kills import found
from faults.injector import happened, with_faults
from raymill.report.audit import audit

pytestmark = [pytest.mark.integration, pytest.mark.chaos]
STEPS, EVERY, BAD, BATCH = 80, 20, 31, 8
COMMON = (
    "tracking=none", f"train.steps={STEPS}", f"checkpoint.every={EVERY}", "evaluation.every=0",
    "checkpoint.keep_last=100", "run.workers=2",
)  # fmt: skip


def run(workshop: Workshop, name: str, folder: Path | None, policy: str) -> tuple[int, str]:
    fault = {"what": "nan", "rank": 1, "step": BAD, "phase": "forward"}
    return job.run_alone(
        "pretrain", *workshop.overrides, *COMMON, f"run.name={name}", f"guard.policy={policy}",
        cwd=workshop.root, env=with_faults(folder, fault) if folder else None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def calm(workshop: Workshop) -> Path:
    code, output = run(workshop, "no-nan", None, "stop")
    assert code == 0, output
    return workshop.run_dir("no-nan")


def refused(run_dir: Path) -> tuple[int, str, list[int]]:
    """(step, words, samples of rank 1) of the one update that wasn't made."""
    [event] = job.events(run_dir, "refused")
    return event["step"], event["text"], event["samples_by_rank"][1]


def test_stop(workshop: Workshop, calm: Path, tmp_path: Path) -> None:
    """The run ends before the update and names the samples; the same command continues exactly."""
    code, output = run(workshop, "stop", tmp_path, "stop")
    assert code == 1
    assert happened(tmp_path) == 1
    assert f"is not finite in step {BAD} (rank 1; global samples " in output
    assert "that update wasn't made, and the last checkpoint stands" in output
    assert "Traceback" not in output
    run_dir = workshop.run_dir("stop")
    step, text, samples = refused(run_dir)
    assert step == BAD
    assert len(samples) == BATCH // 2
    assert text in output
    code, output = run(workshop, "stop", None, "stop")
    assert code == 0, output
    assert f"resumed at step {EVERY}" in output
    assert found(run_dir) == found(calm)


def test_skip(workshop: Workshop, calm: Path, tmp_path: Path) -> None:
    """Only that update isn't made: samples stay where they were, and the audit reports it."""
    code, output = run(workshop, "skip", tmp_path, "skip")
    assert code == 0, output
    run_dir = workshop.run_dir("skip")
    ours, theirs = found(run_dir), found(calm)
    assert {step: ids for step, (*_, ids) in ours.items()} == {
        step: ids for step, (*_, ids) in theirs.items()
    }
    assert {step: ours[step] for step in range(1, BAD)} == {
        step: theirs[step] for step in range(1, BAD)
    }
    assert ours[BAD + 1][0] != theirs[BAD + 1][0], "an update less"
    told = audit(run_dir)
    assert told.problems == []
    assert told.left_out == BATCH
    assert len(told.attempts) == 1


def test_rewind(workshop: Workshop, calm: Path, tmp_path: Path) -> None:
    """Back to step 20, and on with the samples that follow the bad step's."""
    code, output = run(workshop, "rewind", tmp_path, "rewind")
    assert code == 0, output
    first, last = EVERY * BATCH, BAD * BATCH - 1
    assert f"back to the last checkpoint, and past the samples {first}-{last}" in output
    assert "Traceback" not in output
    run_dir = workshop.run_dir("rewind")
    ours, theirs = found(run_dir), found(calm)
    assert sorted(ours) == list(range(1, STEPS + 1))
    left_out = BAD - EVERY
    for step in range(EVERY + 1, STEPS - left_out + 1):
        assert ours[step][2] == theirs[step + left_out][2], step
    told = audit(run_dir)
    assert told.problems == []
    assert told.left_out == left_out * BATCH
    assert [attempt.first for attempt in told.attempts] == [1, EVERY + 1]
