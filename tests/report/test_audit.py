"""Audits of runs whose files are written here line by line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.test_commit import LAYOUT, Alone, manifest, state
from raymill.checkpoint.commit import commit
from raymill.checkpoint.fence import raise_fence
from raymill.config.compose import load
from raymill.errors import ConfigError
from raymill.report.audit import audit, audit_lines, run
from raymill.track.follow import Follower
from raymill.track.state_log import StateLog, read_history

BATCH = 8


class RunWriter:
    """Writer of a run's journal and history, event by event, on its own clock."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        run_dir.mkdir(parents=True)
        self.now = 1000.0

    def event(self, kind: str, step: int, attempt: int, **more: Any) -> None:
        line = {"kind": kind, "step": step, "attempt": attempt, "time": self.now, **more}
        with (self.run_dir / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def step(self, step: int, attempt: int, samples: int | None = None) -> None:
        samples = step * BATCH if samples is None else samples
        ids = np.arange(samples - BATCH, samples, dtype="<i8")
        self.now += 2
        self.event(
            "step", step, attempt, samples=samples,
            sample_ids_sha256=hashlib.sha256(ids.tobytes()).hexdigest(), **{"perf/step_s": 2.0},
        )  # fmt: skip

    def state(self, token: int, name: str, **more: Any) -> None:
        line = {"time": self.now, "token": token, "state": name, **more}
        with (self.run_dir / "history.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Write a run with failures.

    Two workers make steps 1 to 5, then one is lost; one worker continues from step 3 to step 6; then the
    driver is killed, and another one finishes at step 8.
    """
    writer = RunWriter(tmp_path / "runs" / "one")
    writer.state(1, "starting", workers=2)
    writer.now += 10
    writer.event("attempt", 0, 1, world_size=2)
    for step in range(1, 6):
        writer.step(step, 1)
    writer.now += 1
    writer.state(1, "recovering", what="rank 1: ActorDiedError: gone", cause="lost")
    writer.now += 9
    writer.event("attempt", 3, 2, world_size=1)
    for step in range(4, 7):
        writer.step(step, 2)
    writer.now += 500  # no driver holds the run
    writer.state(2, "starting", workers=1)
    writer.now += 10
    writer.event("attempt", 6, 3, world_size=1)
    for step in (7, 8):
        writer.step(step, 3)
    writer.event("status", 8, 3, status="finished")
    writer.state(2, "finished")
    checkpoints = writer.run_dir / "checkpoints"
    raise_fence(checkpoints, 0)
    for step in (6, 8):
        fragments = [(name, 0, arrays) for name, arrays in state(step).items()]
        commit(checkpoints, manifest(step), LAYOUT, fragments, Alone())
    return writer.run_dir


def test_attempts_losses_and_time(run_dir: Path) -> None:
    found = audit(run_dir)
    assert [(a.number, a.workers, a.first, a.last) for a in found.attempts] == [
        (1, 2, 1, 5), (2, 1, 4, 6), (3, 1, 7, 8),
    ]  # fmt: skip
    assert [a.ended for a in found.attempts] == [
        "rank 1: ActorDiedError: gone", "its driver ended without a record", "finished",
    ]  # fmt: skip
    assert (found.step, found.samples, found.replayed, found.lost_steps) == (8, 64, 16, 2)
    assert found.useful_s == 16.0
    assert found.running_s == (10 + 10 + 10 + 6) + (10 + 4)
    assert found.effective == pytest.approx(16 / 50)
    assert [step for step, _ in found.verified] == [6, 8]
    assert found.problems == []
    text = dict(audit_lines(found))
    assert text["samples"].startswith("64 drawn by effective steps; 16 drawn again after")
    assert text["time"].startswith("32.0% effective")


def test_the_first_cause_is_the_attempts_and_those_after_it_of_starts(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.state(1, "starting", workers=2)
    writer.event("attempt", 0, 1, world_size=2)
    writer.step(1, 1)
    writer.state(1, "recovering", what="rank 1 made no progress for 120 s")
    writer.now += 1
    writer.state(1, "recovering", what="rank 0: ActorDiedError: gone", cause="lost")
    writer.now += 9
    writer.state(1, "recovering", what="rank 0: TimeoutError: no network", cause="raised")
    writer.now += 9
    writer.event("attempt", 0, 2, world_size=2)
    writer.step(1, 2)
    assert [attempt.ended for attempt in audit(writer.run_dir).attempts] == [
        "rank 1 made no progress for 120 s; then 1 start failed: rank 0: TimeoutError: no network",
        "still running, or its driver ended without a record",
    ]


def test_failed_starts_are_no_end_of_an_attempt(tmp_path: Path) -> None:
    """Both before the first attempt, and by another driver after one whose own driver was killed."""
    writer = RunWriter(tmp_path / "run")
    writer.state(1, "starting", workers=2)
    writer.state(1, "recovering", what="rank 0: TimeoutError: no network", cause="raised")
    found = audit(writer.run_dir)
    assert (found.attempts, found.step, found.problems) == ([], 0, [])
    assert dict(audit_lines(found))["before"] == "1 start failed: rank 0: TimeoutError: no network"
    writer.now += 1
    writer.event("attempt", 0, 1, world_size=2)
    writer.step(1, 1)
    writer.now += 100
    for _ in range(2):
        writer.state(2, "starting", workers=2)
        writer.state(2, "recovering", what="rank 1: gone", cause="lost")
        writer.now += 1
    writer.event("attempt", 0, 2, world_size=2)
    writer.step(1, 2)
    found = audit(writer.run_dir)
    assert found.unstarted == "1 start failed: rank 0: TimeoutError: no network"
    assert found.attempts[0].ended == (
        "its driver ended without a record; then 2 starts failed: rank 1: gone"
    )


def test_damage_is_named_and_is_the_exit_code(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = load("audit", ["run.name=one", f"storage.root={run_dir.parents[1]}"])
    assert run(job) == 0
    file = run_dir / "checkpoints" / "step-00000006" / "rank-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert run(job) == 1
    assert "PROBLEM" in capsys.readouterr().out
    [problem] = audit(run_dir).problems
    assert "step-00000006" in problem
    with pytest.raises(ConfigError, match="has no such run; there is: one"):
        run(replace(job, run=replace(job.run, name="two")))


def test_samples_drawn_twice_or_never_are_problems(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "runs" / "bad")
    writer.event("attempt", 0, 1, world_size=1)
    for step, samples in ((1, 8), (2, 16), (3, 16), (4, 32)):
        writer.step(step, 1, samples)
    assert audit(writer.run_dir).problems == [
        "step 3 drew samples from 8 on instead of 16",
        "step 4 drew samples from 24 on instead of 16",
    ]


def test_windows_that_the_guard_left_out_are_no_gap(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "runs" / "rewound")
    writer.event("attempt", 0, 1, world_size=1)
    for step in (1, 2, 3):
        writer.step(step, 1)
    writer.event("attempt", 1, 2, world_size=1)  # gone back, and past what followed
    for step, samples in ((2, 32), (3, 40)):
        writer.step(step, 2, samples)
    checkpoints = writer.run_dir / "checkpoints"
    raise_fence(checkpoints, 0)
    rewound = replace(manifest(3), samples=40, guard={"skipped": [[8, 15], [16, 23]]})
    fragments = [(name, 0, arrays) for name, arrays in state(3).items()]
    commit(checkpoints, rewound, LAYOUT, fragments, Alone())
    found = audit(writer.run_dir)
    assert found.problems == []
    assert (found.left_out, found.replayed, found.lost_steps) == (16, 0, 2)


def test_a_state_that_lasts_is_written_once(tmp_path: Path) -> None:
    history = StateLog(tmp_path, 3)
    history.enter("running", step=1)
    history.enter("committing")
    history.enter("committing")
    history.enter("committing", why="again")
    with (tmp_path / "history.jsonl").open("a") as stream:
        stream.write('{"half')
    assert [line["state"] for line in read_history(tmp_path)] == ["running", *["committing"] * 2]
    assert {line["token"] for line in read_history(tmp_path)} == {3}


def test_a_writer_that_lost_the_run_is_not_read(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    for step, attempt in ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2)):
        writer.event("step", step, attempt)
    follower = Follower(tmp_path / "run" / "metrics.jsonl")
    assert [(e["step"], e["attempt"]) for e in follower.read()] == [
        (1, 1), (2, 1), (2, 2), (3, 2),
    ]  # fmt: skip
