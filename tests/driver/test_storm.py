"""The storm: faults of all kinds, at random places from a seed, in one run; at its end it is the run that met
none of them."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from driver import job, test_alignment, test_sft
from driver.conftest import Workshop
from driver.test_kills import check_attempts, found
from driver.test_resume import wait_for_no_orphans
from faults.injector import happened, with_faults
from raymill.checkpoint.retention import committed_steps
from raymill.report.audit import audit, audit_lines

pytestmark = [pytest.mark.integration, pytest.mark.chaos, pytest.mark.timeout(3600)]
PHASES = ("data", "forward", "backward", "optimizer")
WRITES = 6  # of rank 0 for a checkpoint
OFF = ("tracking=none", "watchdog.timeout_s=20", "checkpoint.keep_last=1000")

place = test_alignment.place
shop = test_sft.shop


@dataclass(frozen=True)
class Storm:
    """A job, how long it is, and what it runs on at each start of its driver, over and over."""

    command: tuple[str, ...]
    root: Path
    steps: int
    every: int
    worlds: Sequence[tuple[str, ...]] = (("run.workers=2",),)
    tail: int = (
        70  # last steps, in which a killed driver's workers might finish before they are gone
    )

    def start(self, name: str, number: int, env: dict[str, str]) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = job.start(
            *self.command, *OFF, f"train.steps={self.steps}", f"checkpoint.every={self.every}",
            f"run.name={name}", *self.worlds[number % len(self.worlds)], cwd=self.root, env=env,
        )  # fmt: skip
        return process

    def run_dir(self, name: str) -> Path:
        return self.root / "storage" / "runs" / name


def faults_of(storm: Storm, seed: int, count: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """Draw the faults inside the workers, and the (step, signal, whether the newest checkpoint is damaged then)
    at which the driver is ended."""
    draw = random.Random(seed)
    ranks = 2 if len(storm.worlds) == 1 else 1  # those that are always there
    inside, outside = [], []
    for step in sorted(draw.sample(range(4, storm.steps - 3), count)):
        what = draw.choice(("kill", "kill", "stop", "sleep", "raise", "full", *["driver"] * 4))
        if what == "driver" and step <= storm.steps - storm.tail:
            number = draw.choice((signal.SIGKILL, signal.SIGTERM))
            outside.append((step, number, draw.random() < 0.5))
        elif what in ("driver", "full"):
            inside.append({"what": "full", "rank": 0, "write": draw.randint(1, WRITES)})
        else:
            place = {"rank": draw.randrange(ranks), "step": step, "phase": draw.choice(PHASES)}
            inside.append({"what": what, **place})
    return inside, outside


def damage_newest(run_dir: Path) -> bool:
    """Flip a bit of the newest checkpoint, where there is one before it to resume from."""
    steps = committed_steps(run_dir / "checkpoints")
    if len(steps) < 2:
        return False
    file = next(steps[-1][1].glob("rank-*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    return True


def wait_for_new_step(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    """Wait until this driver's workers have made a step from now on."""
    attempts = len(job.events(run_dir, "attempt"))
    job.wait_for_attempt(process, run_dir, attempts + 1, steps=1)
    while job.events(run_dir, "step")[-1]["step"] < step:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def weather(storm: Storm, tmp_path: Path, seed: int, count: int) -> tuple[Path, Path]:
    """Run it through the faults, and without; the two run folders, once the audit of the first is clean."""
    inside, outside = faults_of(storm, seed, count)
    environment = with_faults(tmp_path, *inside)
    run_dir, calm = storm.run_dir(f"storm-{seed}"), storm.run_dir(f"calm-{seed}")
    damaged = 0
    for number, (step, how, damage) in enumerate([*outside, (None, None, False)]):
        process = storm.start(run_dir.name, number, environment)
        if step is not None:
            wait_for_new_step(process, run_dir, step)
            process.send_signal(how)
        output, _ = process.communicate(timeout=3000)
        expected = {None: 0, signal.SIGTERM: 85, signal.SIGKILL: -signal.SIGKILL}[how]
        assert process.returncode == expected, output
        assert "Traceback" not in output
        wait_for_no_orphans(run_dir)
        damaged += damage and damage_newest(run_dir)
    assert happened(tmp_path) == len(inside)
    process = storm.start(calm.name, 0, {})
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    check_attempts(run_dir, storm.every, damaged)
    told = audit(run_dir)
    print(f"\n{count} faults: {[f['what'] for f in inside]}, {outside}")
    for name, text in audit_lines(told):
        print(f"{name:<14}{text}")
    assert told.problems == []
    assert told.step == storm.steps
    # One that is still being written when a process dies isn't there.
    assert told.lost_steps <= storm.every * (count + damaged) + 2 * len(told.attempts)
    return run_dir, calm


def test_pretraining(workshop: Workshop, tmp_path: Path) -> None:
    storm = Storm(("pretrain", *workshop.overrides, "evaluation.every=0"), workshop.root, 400, 10)
    run_dir, calm = weather(storm, tmp_path, seed=1, count=20)
    assert found(run_dir) == found(calm), "bit-equal"


LORA = ("lora.rank=4", "optim.learning_rate=1e-2")
TWO_AND_ONE = (("run.workers=2",), ("run.workers=1",))
STAGES = (
    ("run.workers=2", "zero=stage3"),
    ("run.workers=1", "zero=stage3"),
    ("run.workers=2", "zero=stage1"),
)


@pytest.mark.parametrize(
    ("settings", "worlds"), [((), TWO_AND_ONE), (LORA, STAGES)], ids=["packed", "lora"]
)
def test_fine_tuning(
    shop: Workshop, tmp_path: Path, settings: tuple[str, ...], worlds: Sequence[tuple[str, ...]]
) -> None:
    """Each time its driver ends, the run continues with another number of workers, or under another stage."""
    quiet = [
        text
        for text in test_sft.QUIET
        if not text.startswith(("train.", "checkpoint.", "tracking"))
    ]
    command = ("sft", *shop.overrides, *quiet, *settings, test_sft.PARENT(shop))
    storm = Storm(command, shop.root, 160, 10, worlds)
    seed = 2 if settings else 9
    run_dir, calm = weather(storm, tmp_path, seed=seed, count=5)
    check_near(found(run_dir), found(calm))


def check_near(ours: dict[int, Any], theirs: dict[int, Any]) -> None:
    """The same samples in each step, and losses that differ by rounding."""
    assert ours.keys() == theirs.keys()
    for step, (loss, _, ids) in ours.items():
        assert ids == theirs[step][2], step
        assert loss == pytest.approx(theirs[step][0], rel=1e-3), step


def test_reinforcement(place: Path, tmp_path: Path) -> None:
    dropped = ("train.steps", "checkpoint.every", "run.name", "tracking")
    settings = [
        text for text in test_alignment.overrides(place, "x") if not text.startswith(dropped)
    ]
    storm = Storm(("rlhf", *settings), place, 40, 5, tail=10)
    run_dir, calm = weather(storm, tmp_path, seed=3, count=5)
    test_alignment.assert_equal_steps(run_dir, calm)
