"""Workers come and go with the nodes of a cluster, and the run is the one that stayed as it was."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from cluster import job
from cluster.conftest import Workshop
from cluster.head import ray_head
from cluster.test_kills import COMMON, check_attempts, found

pytestmark = [pytest.mark.integration, pytest.mark.chaos]
STEPS = 600
SETTINGS = (
    *COMMON[:1], f"train.steps={STEPS}", "checkpoint.every=20", "evaluation.every=0",
    "checkpoint.keep_last=100",
)  # fmt: skip


def worlds(run_dir: Any) -> list[int]:
    return [event["world_size"] for event in job.events(run_dir, "attempt")]


def test_a_node_that_comes_is_used_and_one_that_goes_is_done_without(workshop: Workshop) -> None:
    """One worker, then two when a node has joined, then one again after it was killed."""
    run_dir = workshop.run_dir("elastic")
    common = (*workshop.overrides, *SETTINGS)
    with ray_head(cpus=3) as head:
        process = job.start(
            "pretrain", *common, "run.name=elastic", "run.workers=1..2", "cluster=auto",
            f"cluster.address={head.cluster}", "cluster.cpus_per_worker=2", "train.threads=1",
            cwd=workshop.root, env={key: head.env[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")},
        )  # fmt: skip
        job.wait_for_step(process, run_dir, 5)
        raylet = head.add_node(cpus=2)
        job.wait_for_attempt(process, run_dir, 2, steps=30)
        for child in raylet.children(recursive=True):
            child.send_signal(signal.SIGKILL)
        raylet.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=job.TIMEOUT_S)
    assert process.returncode == 0, output
    assert "there is room for 2 workers: after a checkpoint the run goes on with 2" in output
    assert "Traceback" not in output
    assert worlds(run_dir)[:2] == [1, 2]
    assert worlds(run_dir)[-1] == 1
    check_attempts(run_dir)
    code, output = job.run(
        "pretrain", *common, "run.name=still", "train.threads=1", cwd=workshop.root
    )
    assert code == 0, output
    moved, still = found(run_dir), found(workshop.run_dir("still"))
    assert {step: ids for step, (*_, ids) in moved.items()} == {
        step: ids for step, (*_, ids) in still.items()
    }
    resized = [event["step"] for event in job.events(run_dir, "attempt")][1:]
    for begin in resized:
        for step in range(begin + 1, min(begin + 21, STEPS + 1)):
            assert moved[step][0] == pytest.approx(still[step][0], rel=1e-4), (begin, step)
