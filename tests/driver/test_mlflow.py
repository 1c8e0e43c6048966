"""A tracking server that dies, refuses and hangs during a run has every metric once, when it is back."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from driver import job
from driver.conftest import Workshop
from servers import free_port, hanging_server, mlflow_server, refusing_server

pytestmark = [pytest.mark.integration, pytest.mark.chaos]
STEPS = 1500


def test_a_server_that_comes_and_goes(workshop: Workshop, tmp_path: Path) -> None:
    """Down at the start, there, killed, answering 500, hanging, and there again for the end."""
    port = free_port()
    run_dir = workshop.run_dir("tracked")
    process = job.start(
        "pretrain", *workshop.overrides, "run.name=tracked", f"train.steps={STEPS}",
        "evaluation.every=0", "tracking=server", f"tracking.uri=http://127.0.0.1:{port}",
        "tracking.flush_timeout_s=300", "tracking.register=false", cwd=workshop.root,
    )  # fmt: skip
    job.wait_for_step(process, run_dir, 20)
    with mlflow_server(tmp_path, port):
        job.wait_for_step(process, run_dir, STEPS // 3)
        wait_for_tracking(run_dir)
    with refusing_server(port):
        job.wait_for_step(process, run_dir, STEPS // 2)
    with hanging_server(port):
        job.wait_for_step(process, run_dir, STEPS)
    with mlflow_server(tmp_path, port):
        output, _ = process.communicate(timeout=job.TIMEOUT_S)
        assert process.returncode == 0, output
        assert "Traceback" not in output
        check(run_dir, f"http://127.0.0.1:{port}")


def wait_for_tracking(run_dir: Path) -> None:
    """Wait until something was sent."""
    deadline = time.monotonic() + 120
    while not (run_dir / "tracking.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def check(run_dir: Path, uri: str) -> None:
    """Every step is there once, with the journal's values."""
    from mlflow import MlflowClient

    run_id = json.loads((run_dir / "tracking.json").read_text())["run_id"]
    told = [
        (metric.step, metric.value)
        for metric in MlflowClient(uri).get_metric_history(run_id, "train/loss")
    ]
    assert max(Counter(step for step, _ in told).values()) == 1
    steps = job.events(run_dir, "step")
    assert told == [(event["step"], pytest.approx(event["train/loss"])) for event in steps]
    assert len(told) == STEPS
