"""`ray job submit` to a head with token authentication: the submitted tree runs, whatever is installed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver import job
from driver.head import Head, ray_head, status_of
from driver.job import ROOT

pytestmark = pytest.mark.integration

PROBE = """
import json, platform, sys
sys.path.insert(0, "platform")
import raymill
from raymill.cluster.session import connect
from raymill.config import load

with connect(load("prepare", ["cluster=auto", "storage.root=/tmp"]).cluster):
    import ray

    @ray.remote
    def look():
        import platform, raymill
        return raymill.__version__, platform.__file__

    print("PROBE " + json.dumps([raymill.__version__, platform.__file__, *ray.get(look.remote())]))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head(cpus=3) as started:
        yield started


def test_without_the_token_nothing_gets_in(head: Head) -> None:
    assert status_of(head.address, None) == 401
    assert status_of(head.address, "wrong") == 403
    assert status_of(head.address, head.token) == 200


def test_the_submitted_tree_wins_and_platform_is_the_standard_librarys(
    head: Head, tmp_path: Path
) -> None:
    """A relative storage root is refused, since it would vanish with the job's folder."""
    shutil.copytree(ROOT / "platform", tmp_path / "platform")
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    (tmp_path / "probe.py").write_text(PROBE)
    relative = "python jobs/pretrain.py experiment=tiny"
    code, output = head.submit(tmp_path, "bash", "-c", f"python probe.py && {relative}")
    assert code != 0
    assert "inside a submitted job a relative path would vanish" in output
    line = next(line for line in output.splitlines() if "PROBE " in line)
    ours, driver_platform, theirs, worker_platform = json.loads(line.split("PROBE ")[1])
    import raymill

    assert ours == theirs == raymill.__version__, "not the older copy on PYTHONPATH"
    assert driver_platform.endswith("/platform.py")
    assert worker_platform == driver_platform


@pytest.fixture(scope="module")
def overrides(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides of jobs whose data is prepared."""
    root = tmp_path_factory.mktemp("submitted")
    job.write_corpus(root / "texts")
    found = (
        "experiment=tiny", "data=files", f"data.path={root / 'texts'}", "tokenizer.vocab_size=300",
        "data.sequence_length=64", "data.validation.fraction=0.2", f"storage.root={root / 'storage'}",
        "tracking=none",
    )  # fmt: skip
    code, output = job.run("prepare", *found, cwd=root)
    assert code == 0, output
    return (*found, "cluster=auto", "run.workers=2", "train.micro_batch=2")


def run_dir_of(overrides: tuple[str, ...], name: str) -> Path:
    [root] = [text.partition("=")[2] for text in overrides if text.startswith("storage.root=")]
    return Path(root) / "runs" / name


@pytest.mark.slow
def test_a_model_is_trained_by_a_submitted_job(head: Head, overrides: tuple[str, ...]) -> None:
    code, output = head.submit(ROOT, "python", "jobs/pretrain.py", *overrides, "run.name=submitted")
    assert code == 0, output
    run_dir = run_dir_of(overrides, "submitted")
    assert json.loads((run_dir / "summary.json").read_text())["figures"]["steps"] == 12
    assert (run_dir / "export" / "model.safetensors").exists()
    assert job.events(run_dir, "attempt")[0]["world_size"] == 2


@pytest.mark.slow
def test_a_stopped_job_commits_its_last_step(head: Head, overrides: tuple[str, ...]) -> None:
    """`ray job stop` kills after three seconds, unless the job was submitted as the README says."""
    command = ("python", "jobs/pretrain.py", *overrides, "run.name=stopped", "train.steps=5000")
    submitted = head.ray(
        "submit", "--no-wait", "--submission-id", "stopped", "--runtime-env-json",
        '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}', "--working-dir", str(ROOT), "--", *command,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    run_dir = run_dir_of(overrides, "stopped")
    deadline = time.monotonic() + job.TIMEOUT_S
    while len(job.events(run_dir, "step")) < 20:
        assert time.monotonic() < deadline, head.ray("logs", "stopped").stdout
        time.sleep(0.1)
    assert head.ray("stop", "stopped").returncode == 0
    output = head.ray("logs", "stopped").stdout
    assert "preempted, resume with the same command:" in output, output
    last = job.events(run_dir, "step")[-1]["step"]
    assert job.events(run_dir, "checkpoint")[-1]["step"] == last < 5000
