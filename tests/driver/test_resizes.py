"""Rank 0 killed in the middle of a step, then the driver; each time on another number of workers and under
another ZeRO stage: the same samples, and the losses of the run that stayed as it was."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from driver import job, test_alignment, test_sft
from driver.conftest import Workshop
from driver.test_kills import check_attempts, found
from driver.test_storm import LORA
from faults.injector import happened, with_faults
from raymill.report.audit import audit

pytestmark = [pytest.mark.integration, pytest.mark.chaos]
STEPS, EVERY = 70, 10
PLACES = (
    ("run.workers=2", "zero=stage3"),
    ("run.workers=1", "zero=stage1"),
    ("run.workers=3", "zero=stage2"),
)
COMMON = ("tracking=none", f"train.steps={STEPS}", f"checkpoint.every={EVERY}", "schedule=constant",
          "checkpoint.keep_last=1000", "evaluation.every=0", "evaluation.rows=12")  # fmt: skip
SET_HERE = tuple(text.partition("=")[0] + "=" for text in COMMON)

place = test_alignment.place
shop = test_sft.shop


def settings(kind: str, shop: Workshop, place: Path) -> tuple[str, ...]:
    """The job and its overrides; its batch can be divided among one, two and three workers."""
    if kind == "grpo":
        given = test_alignment.overrides(place, "", "train.global_batch=6", "train.micro_batch=4")
        dropped = (*SET_HERE, "run.name=", "train.global_batch=8", "train.micro_batch=16")
        return ("rlhf", *(text for text in given if not text.startswith(dropped)))
    quiet = [text for text in test_sft.QUIET if not text.startswith(SET_HERE)]
    more = LORA if kind == "lora" else ()
    return ("sft", *shop.overrides, *quiet, *more, "train.global_batch=12", "train.micro_batch=2",
            test_sft.PARENT(shop))  # fmt: skip


@pytest.mark.parametrize("kind", ["packed", "lora", "grpo"])
def test_killed_and_moved(kind: str, shop: Workshop, place: Path, tmp_path: Path) -> None:
    root = place if kind == "grpo" else shop.root
    command = (*settings(kind, shop, place), *COMMON)
    run_dir, still = (root / "storage" / "runs" / f"{kind}-{name}" for name in ("moved", "still"))
    kill = {"what": "kill", "rank": 0, "step": 15, "phase": "backward"}
    for here, last, faults in zip(PLACES, (25, 50, STEPS), ([kill], [], []), strict=True):
        folder = tmp_path / str(last)
        folder.mkdir()
        wait = {"what": "sleep", "rank": 0, "step": last + 1, "phase": "forward"}
        env = with_faults(folder, *faults, wait)
        process = job.start(*command, *here, f"run.name={run_dir.name}", cwd=root, env=env)
        if last < STEPS:
            output = job.kill_after(process, run_dir, last)
        else:
            output, _ = process.communicate(timeout=job.TIMEOUT_S)
            assert process.returncode == 0, output
        assert "Traceback" not in output
    assert happened(tmp_path / "25") >= 1
    check_attempts(run_dir, EVERY)
    assert [event["world_size"] for event in job.events(run_dir, "attempt")] == [2, 2, 1, 3]
    told = audit(run_dir)
    assert told.problems == [] and told.step == STEPS
    code, output = job.run(*command, *PLACES[0], f"run.name={still.name}", cwd=root)
    assert code == 0, output
    moved, expected = found(run_dir), found(still)
    assert moved.keys() == expected.keys()
    assert all(ids == expected[step][2] for step, (*_, ids) in moved.items())
    begins = [event["step"] for event in job.events(run_dir, "attempt")]
    for step in range(1, begins[2] + 1):  # until it was first moved
        assert moved[step] == expected[step], step
    print()
    for first, last in pairwise([*begins[2:], STEPS]):
        far = max(apart(moved[step][0], expected[step][0]) for step in range(first + 1, last + 1))
        print(f"{kind}: steps {first + 1}-{last}: losses within {far:.1e}")
        assert far < 1e-4


def apart(one: float, other: float) -> float:
    """Relative to the other; a loss about zero, as a policy's is, absolutely."""
    return abs(one - other) / max(abs(other), 1e-2)
