"""A Ray head of a test alone, with nodes that come and go, all on this machine."""

from __future__ import annotations

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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from driver import job
from servers import free_port

RAY = (sys.executable, "-m", "ray.scripts.scripts")


@dataclass(frozen=True)
class Head:
    """`address` is of the jobs API, `cluster` what drivers and nodes join."""

    address: str
    cluster: str
    token: str
    env: dict[str, str]

    def submit(self, working_dir: Path, *entrypoint: str) -> tuple[int, str]:
        """(exit code, output) of a submitted job."""
        done = self.ray("submit", "--working-dir", str(working_dir), "--", *entrypoint)
        return done.returncode, done.stdout + done.stderr

    def ray(self, what: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job <what>`."""
        return subprocess.run(
            [*RAY, "job", what, "--address", self.address, *arguments],
            env=self.env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def add_node(self, cpus: int) -> psutil.Process:
        """Another node; its raylet."""
        before = set(self._raylets())
        subprocess.run(
            [*RAY, "start", "--address", self.cluster, "--node-ip-address", "127.0.0.1",
             "--num-cpus", str(cpus), "--disable-usage-stats"],
            env=self.env, check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        [added] = set(self._raylets()) - before
        return added

    def drain(self, node: str) -> None:
        """Tell Ray that a node is about to be taken away, as a cloud does before a pre-emption."""
        subprocess.run(
            [*RAY, "drain-node", "--address", self.cluster, "--node-id", node, "--reason",
             "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "pre-empted",
             "--deadline-remaining-seconds", "120"],
            env=self.env, check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    def _raylets(self) -> list[psutil.Process]:
        return [p for p in processes_with(self.token) if p.name() == "raylet"]


def processes_with(token: str) -> list[psutil.Process]:
    """Every process that was given the token."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_AUTH_TOKEN") == token:
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def ray_head(cpus: int) -> Iterator[Head]:
    """Start one; everything of it is killed in the end."""
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
        "PYTHONPATH": str(older.parent),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    ports = [free_port() for _ in range(4)]
    try:
        subprocess.run(
            [*RAY, "start", "--head", "--port", str(ports[0]),
             "--dashboard-port", str(ports[1]), "--dashboard-agent-listen-port", str(ports[2]),
             "--ray-client-server-port", str(ports[3]), "--node-ip-address", "127.0.0.1",
             "--temp-dir", str(folder / "ray"), "--num-cpus", str(cpus), "--disable-usage-stats"],
            env=env, check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        address = f"http://127.0.0.1:{ports[1]}"
        wait_until_up(address, token)
        yield Head(address, f"127.0.0.1:{ports[0]}", token, env)
    finally:
        for process in psutil.process_iter():
            try:
                ours = str(folder) in " ".join(process.cmdline())
                if ours or process.environ().get("RAY_AUTH_TOKEN") == token:
                    process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        shutil.rmtree(folder, ignore_errors=True)


def status_of(address: str, token: str | None) -> int:
    """HTTP status of asking the jobs API; 0 where nobody answers."""
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
    """Wait until the dashboard answers."""
    deadline = time.monotonic() + 120
    while status_of(address, token) != 200:
        assert time.monotonic() < deadline, "Ray's dashboard didn't come up"
        time.sleep(0.5)
