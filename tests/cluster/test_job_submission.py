"""`ray job submit` to a head with token authentication: the submitted tree runs, whatever is installed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster import job
from cluster.job import ROOT

pytestmark = pytest.mark.integration

PROBE = """
import json, platform, sys
sys.path.insert(0, "platform")
import raymill
from raymill.cluster.session import connect
from raymill.config.schema import ClusterConfig

with connect(ClusterConfig("auto", "auto"), workers=0):
    import ray

    @ray.remote
    def look():
        import platform, raymill
        return raymill.__version__, platform.__file__

    print("PROBE " + json.dumps([raymill.__version__, platform.__file__, *ray.get(look.remote())]))
"""


@dataclass(frozen=True)
class Head:
    """A Ray head of this test alone."""

    address: str
    token: str
    env: dict[str, str]

    def submit(self, working_dir: Path, *entrypoint: str) -> tuple[int, str]:
        """(exit code, output) of a submitted job."""
        done = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address",
             self.address, "--working-dir", str(working_dir), "--", *entrypoint],
            env=self.env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Short: Ray's sockets lie below it, and their paths are limited to 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="rm-", dir="/tmp"))
    older = folder / "older" / "raymill"
    older.mkdir(parents=True)
    (older / "__init__.py").write_text('__version__ = "0.0.1"\n')
    token = secrets.token_hex(32)
    env = job.environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "PYTHONPATH": str(older.parent),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    ports = [job_port() for _ in range(4)]
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port", str(ports[0]),
         "--dashboard-port", str(ports[1]), "--dashboard-agent-listen-port", str(ports[2]),
         "--ray-client-server-port", str(ports[3]), "--node-ip-address", "127.0.0.1",
         "--temp-dir", str(folder / "ray"), "--num-cpus", "3", "--disable-usage-stats"],
        env=env, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    address = f"http://127.0.0.1:{ports[1]}"
    try:
        wait_until_up(address, token)
        yield Head(address, token, env)
    finally:
        for process in psutil.process_iter():
            try:
                if str(folder) in " ".join(process.cmdline()) or (
                    process.environ().get("RAY_AUTH_TOKEN") == token
                ):
                    process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        shutil.rmtree(folder, ignore_errors=True)


def job_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status_of(address: str, token: str | None) -> int:
    """HTTP status of asking the jobs API."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{address}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_until_up(address: str, token: str) -> None:
    deadline = time.monotonic() + 120
    while status_of(address, token) != 200:
        assert time.monotonic() < deadline, "Ray's dashboard didn't come up"
        time.sleep(0.5)


def test_without_the_token_nothing_gets_in(head: Head) -> None:
    assert status_of(head.address, None) == 401
    assert status_of(head.address, "wrong") == 403
    assert status_of(head.address, head.token) == 200


def test_the_submitted_tree_wins_and_platform_is_the_standard_librarys(
    head: Head, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "platform", tmp_path / "platform")
    (tmp_path / "probe.py").write_text(PROBE)
    code, output = head.submit(tmp_path, "python", "probe.py")
    assert code == 0, output
    line = next(line for line in output.splitlines() if "PROBE " in line)
    ours, driver_platform, theirs, worker_platform = json.loads(line.split("PROBE ")[1])
    import raymill

    assert ours == theirs == raymill.__version__, "not the older copy on PYTHONPATH"
    assert driver_platform.endswith("/platform.py")
    assert worker_platform == driver_platform


def test_a_relative_storage_root_is_refused(head: Head) -> None:
    code, output = head.submit(ROOT, "python", "jobs/pretrain.py", "experiment=tiny")
    assert code != 0
    assert "inside a submitted job a relative path would vanish" in output


def test_a_model_is_trained_by_a_submitted_job(head: Head, tmp_path: Path) -> None:
    job.write_corpus(tmp_path / "texts")
    overrides = (
        "experiment=tiny", "data=files", f"data.path={tmp_path / 'texts'}", "tokenizer.vocab_size=300",
        "data.sequence_length=64", "data.validation.fraction=0.2", "cluster=auto", "run.workers=2",
        "train.micro_batch=2", "run.name=submitted", f"storage.root={tmp_path / 'storage'}",
        "tracking=none",
    )  # fmt: skip
    code, output = head.submit(ROOT, "python", "jobs/prepare.py", *overrides)
    assert code == 0, output
    code, output = head.submit(ROOT, "python", "jobs/pretrain.py", *overrides)
    assert code == 0, output
    run_dir = tmp_path / "storage" / "runs" / "submitted"
    assert json.loads((run_dir / "summary.json").read_text())["figures"]["steps"] == 12
    assert (run_dir / "export" / "model.safetensors").exists()
    assert job.events(run_dir, "attempt")[0]["world_size"] == 2
