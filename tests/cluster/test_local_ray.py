"""A local Ray has no unused processes, and its workers are forks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import raymill.cluster.local_ray as local_ray
from raymill.cluster.session import warm_up
from raymill.schema.sections import ClusterConfig
from sections import plain

UNUSED = ("monitor.py", "log_monitor.py", "dashboard/dashboard.py")


def processes() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def commands() -> list[str]:
    found = []
    for process in processes():
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            continue
    return found


def test_nothing_runs_that_nobody_uses(ray_session: None) -> None:
    import ray

    # Other tests' jobs may have a Ray of their own, which has ended or is about to.
    session = Path(ray._private.worker._global_node.get_session_dir_path()).name
    running = [command for command in commands() if session in command]
    assert any("raylet" in command for command in running)
    assert not [c for c in running if any(unused in c for unused in UNUSED)]


def test_workers_are_forks(ray_session: None) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def about() -> dict[str, object]:
        return {
            "process": os.getpid(), "parent": os.getppid(), "python": sys.executable,
            "imported": "pyarrow.parquet" in sys.modules, "package": local_ray.__file__,
        }  # fmt: skip

    seen = ray.get(about.remote(), timeout=120)
    assert local_ray._Launcher.server is not None
    assert seen["parent"] == local_ray._Launcher.server.pid
    assert seen["process"] in {process.pid for process in processes()}
    assert seen["imported"]
    assert seen["python"] == sys.executable, "not the launcher"
    assert seen["package"] == local_ray.__file__


def test_a_runtime_environment_reaches_a_fork(ray_session: None) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def read() -> tuple[int, str | None]:
        return os.getppid(), os.environ.get("OF_THIS_TASK")

    own = read.options(runtime_env={"env_vars": {"OF_THIS_TASK": "one"}})
    assert local_ray._Launcher.server is not None
    assert ray.get(own.remote(), timeout=120) == (local_ray._Launcher.server.pid, "one")
    assert ray.get(read.remote(), timeout=120)[1] is None


def test_an_actor_that_is_killed_is_gone(ray_session: None) -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Actor:
        def process(self) -> int:
            return os.getpid()

    actor = Actor.remote()
    process = psutil.Process(ray.get(actor.process.remote(), timeout=120))
    ray.kill(actor)
    deadline = time.monotonic() + 30
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_python_is_itself_again(ray_session: None) -> None:
    from ray._private.node import Node

    assert os.path.basename(os.path.dirname(sys.executable)) == "bin"
    assert all(getattr(Node, name).__name__ == name for name in local_ray._UNUSED)


def test_where_processes_cannot_be_watched_nothing_is_forked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        raise OSError("not in this sandbox")

    monkeypatch.setattr(local_ray._Launcher, "path", None)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert local_ray.fork_server("json") is None


def test_a_joined_cluster_gets_no_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(gpu: bool) -> None:
        raise AssertionError("a server was started")

    monkeypatch.setattr(local_ray, "warm_up", never)
    warm_up(plain(ClusterConfig, "auto", "10.0.0.1:6379"))


def test_a_call_without_a_session_starts_no_ray() -> None:
    """Ray would start one, of its own kind, for whatever thread asks something after the session's end."""
    script = "from raymill.cluster import session; session._silence_ray(); import ray; ray.put(1)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={name: value for name, value in os.environ.items() if name != "RAY_ENABLE_AUTO_CONNECT"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Ray has not been started yet" in done.stderr
