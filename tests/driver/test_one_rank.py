"""Errors of one rank alone, in a whole run: it ends or restarts within seconds, and names the failed rank."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import Any

import psutil
import pytest

from driver import faulty, job
from driver.conftest import Workshop
from raymill.cluster.process_group import GroupBackend, GroupConfig
from raymill.driver import launch

# Whole runs of two workers: a minute together.
pytestmark = [pytest.mark.integration, pytest.mark.slow]
# The watchdog would end a rank that waits for one that has left.
WAITS_S = 30
COMMON = (
    "tracking=none", "train.steps=6", "checkpoint.every=2", "run.workers=2", f"watchdog.timeout_s={WAITS_S}",
    "zero=stage3",
)  # fmt: skip


def run(workshop: Workshop, name: str, *more: str) -> tuple[int, str]:
    code, output = job.run(
        "pretrain", *workshop.overrides, *COMMON, f"run.name={name}", *more, cwd=workshop.root
    )
    assert "Traceback" not in output, output
    assert "made no progress" not in output, output
    return code, output


def failures(run_dir: Path) -> list[tuple[str, str]]:
    """(cause, what) of each, as the driver noted it."""
    lines = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    return [(line["cause"], line["what"]) for line in lines if "cause" in line]


def test_one_after_the_other(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that another start may not meet gets one. Damaged held-out rows don't: they end the run on both
    ranks, as the event log says."""
    monkeypatch.setattr(launch, "_work", faulty.with_fault(faulty.one_after_the_other))
    code, output = run(workshop, "one", "evaluation.every=4", "evaluation.batch=2")
    assert code == 1, output
    run_dir = workshop.run_dir("one")
    assert failures(run_dir) == [
        ("raised", f"rank 1 on {gethostname()}: ValueError: injected in a forward pass"),
        ("raised", f"rank 1 on {gethostname()}: RuntimeError: injected where rows are read"),
    ]
    assert "error: injected damage of held-out rows" in output
    [end] = job.events(run_dir, "status")
    assert (end["status"], end["error_type"]) == ("failed", "DataError")


@pytest.mark.parametrize(
    ("fault", "expected", "told"),
    [
        (faulty.damage_alone, 1, "error: injected damage of one rank's rows"),
        (faulty.refusal_alone, 2, "2 problems in the configuration:\n  1. injected: no such thing\n  2. nor"),
    ],
)  # fmt: skip
def test_what_another_start_would_meet_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, fault: Any, expected: int, told: str
) -> None:
    """The error ends the run with its own exit code, also if the other rank is in the middle of a step."""
    monkeypatch.setattr(launch, "_work", faulty.with_fault(fault))
    name = fault.__name__
    code, output = run(workshop, name, "evaluation.every=0")
    assert (code, told in output) == (expected, True), output
    [(cause, what)] = failures(workshop.run_dir(name))
    assert cause == "raised" and f"rank {2 - expected} on {gethostname()}: " in what


class Apart(GroupBackend):
    """A process group that can't form: its interface isn't there. It notes the workers, and those of before
    that are still there."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        noted = backend_config.folder / "workers"
        before = noted.read_text().split() if noted.exists() else []
        left = [pid for pid in before if psutil.pid_exists(int(pid))]
        (backend_config.folder / "left").write_text(" ".join(left))
        pids = worker_group.execute(_part)
        noted.write_text(" ".join([*before, *map(str, pids)]))
        super().on_start(worker_group, backend_config)


def _part() -> int:
    os.environ["GLOO_SOCKET_IFNAME"] = "nowhere"
    return os.getpid()


@dataclass
class ApartConfig(GroupConfig):
    folder: Path = Path()

    @property
    def backend_cls(self) -> type[GroupBackend]:
        return Apart


def test_a_process_group_that_cannot_form(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run says why, and the next attempt gets the resources of the one before."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    monkeypatch.setattr(
        "raymill.cluster.process_group.GroupConfig", partial(ApartConfig, folder=tmp_path)
    )
    # Of the session's eight slots, so that there is room for one attempt at a time.
    code, output = run(workshop, "apart", "cluster.cpus_per_worker=3", "run.max_failures=1")
    assert code == 1, output
    told = "Unable to find address for: nowhere"
    assert [(cause, told in what) for cause, what in failures(workshop.run_dir("apart"))] == [
        ("lost", True), ("lost", True),
    ]  # fmt: skip
    assert "2 failures without a new checkpoint" in output and told in output
    assert len((tmp_path / "workers").read_text().split()) == 4, "two attempts"
    assert (tmp_path / "left").read_text() == "", "none of the first when the second began"
