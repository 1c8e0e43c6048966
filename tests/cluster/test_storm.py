"""The storm: faults of all kinds, at random places from a seed, in one run; at its end it is the run that met
none of them."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from cluster import job
from cluster.conftest import Workshop
from cluster.test_kills import check_attempts, found
from cluster.test_resume import wait_for_no_orphans
from faults.injector import happened, with_faults
from raymill.report.audit import audit, audit_lines

pytestmark = [pytest.mark.integration, pytest.mark.chaos, pytest.mark.timeout(3600)]
STEPS, EVERY = 400, 10
PHASES = ("data", "forward", "backward", "optimizer")
SETTINGS = (
    "tracking=none", f"train.steps={STEPS}", f"checkpoint.every={EVERY}", "evaluation.every=0",
    "checkpoint.keep_last=100", "run.workers=2", "watchdog.timeout_s=20", "guard.policy=stop",
)  # fmt: skip


def faults_of(seed: int, count: int) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """What happens inside of the workers, and (step, signal) of what happens to the driver."""
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(5, STEPS - 5), count))
    inside, outside = [], []
    for step in steps:
        what = draw.choice(("kill", "kill", "stop", "raise", "driver"))
        if what == "driver":
            outside.append((step, draw.choice((signal.SIGKILL, signal.SIGTERM))))
        else:
            place = {"rank": draw.randrange(2), "step": step, "phase": draw.choice(PHASES)}
            inside.append({"what": what, **place})
    return inside, outside


@pytest.mark.parametrize("seed", [1])
def test_storm(workshop: Workshop, tmp_path: Path, seed: int) -> None:
    inside, outside = faults_of(seed, 20)
    environment = with_faults(tmp_path, *inside)
    run_dir = workshop.run_dir(f"storm-{seed}")
    command = ("pretrain", *workshop.overrides, *SETTINGS)
    for step, number in [*outside, (STEPS + 1, None)]:
        process = job.start(*command, f"run.name=storm-{seed}", cwd=workshop.root, env=environment)
        if number is None:
            output, _ = process.communicate(timeout=3600)
            assert process.returncode == 0, output
        else:
            job.wait_for_step(process, run_dir, step)
            process.send_signal(number)
            output, _ = process.communicate(timeout=job.TIMEOUT_S)
            assert process.returncode == (85 if number == signal.SIGTERM else -number), output
            wait_for_no_orphans(run_dir)
    assert happened(tmp_path) == len(inside)
    code, output = job.run(*command, "run.name=calm", cwd=workshop.root)
    assert code == 0, output
    assert found(run_dir) == found(workshop.run_dir("calm")), "bit-equal"
    check_attempts(run_dir)
    told = audit(run_dir)
    for name, text in audit_lines(told):
        print(f"{name:<14}{text}")
    assert told.problems == []
    assert told.lost_steps <= EVERY * (len(inside) + len(outside)) + 2 * len(told.attempts)
