"""Running jobs: as a user does, as processes, from another folder, reading what they print and write; or
in this process."""

from __future__ import annotations

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import psutil
import ray

from raymill.config.entry import main

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
_agents_left: list[psutil.Process] = []


def environment() -> dict[str, str]:
    """A user's environment: nothing of the test session's Ray, no PYTHONPATH."""
    dropped = ("RAY_", "PYTHONPATH", "MLFLOW_")
    return {key: value for key, value in os.environ.items() if not key.startswith(dropped)}


def start(job: str, *overrides: str, cwd: Path, env: dict[str, str] | None = None) -> Any:
    """Start a job in a session of its own, so that a signal reaches it alone."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *overrides],
        cwd=cwd,
        env=environment() | (env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(job: str, *overrides: str, cwd: Path) -> tuple[int, str]:
    """(exit code, output) of a job, in this process and on the session's Ray, for tests where neither a process
    nor a Ray of the job's own is the point."""
    assert ray.is_initialized(), "ask for the fixture `ray_session`"
    entry = runpy.run_path(str(ROOT / "jobs" / f"{job}.py"))
    output = io.StringIO()
    arguments, folder = sys.argv, Path.cwd()
    sys.argv = [str(ROOT / "jobs" / f"{job}.py"), *overrides]
    os.chdir(cwd)
    try:
        with redirect_stdout(output), redirect_stderr(output):
            code = main(job, entry["run"])
    finally:
        os.chdir(folder)
        sys.argv = arguments
    return code, output.getvalue()


def run_alone(
    job: str, *overrides: str, cwd: Path, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """(exit code, output) of a job as a user runs it: a process with a Ray of its own."""
    process = start(job, *overrides, cwd=cwd, env=env)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output


def events(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return a run's events; a line being written is left out."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    found = [json.loads(line) for line in lines]
    return [event for event in found if kind in (None, event["kind"])]


def interrupt_after(process: Any, run_dir: Path, step: int, number: signal.Signals) -> None:
    """Send a signal as soon as a step is in the event log."""
    wait_for_step(process, run_dir, step)
    process.send_signal(number)


def kill_after(process: Any, run_dir: Path, step: int) -> str:
    """Kill a driver as soon as a step is in the event log, and return its output.

    All processes that it has started end by themselves. Two idle agents of Ray's node take a minute, in which
    they look for its control store (`wait_for_agents`).
    """
    wait_for_step(process, run_dir, step)
    children = psutil.Process(process.pid).children(recursive=True)
    agents = [child for child in children if child.name() in _AGENTS]
    started = [child for child in children if child not in agents]
    _agents_left.extend(agents)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    _, left = psutil.wait_procs(started, timeout=60)
    assert not left, f"still running: {left}"
    return str(output)


def wait_for_agents() -> None:
    """Wait until the agents that killed drivers left have ended too."""
    _, left = psutil.wait_procs(_agents_left, timeout=90)
    assert not left, f"still running: {left}"


def wait_for_hold(process: Any, run_dir: Path) -> None:
    """Wait until the job holds its run. Its workers are yet to start, so it will hold it for a while."""
    wait_for(process, (run_dir / "history.jsonl").exists)


def wait_for_step(process: Any, run_dir: Path, step: int) -> None:
    """Wait until a step is in the event log."""
    wait_for(process, lambda: any(event["step"] >= step for event in events(run_dir, "step")))


def wait_for_attempt(process: Any, run_dir: Path, attempt: int, steps: int) -> None:
    """Wait until an attempt has so many steps in the event log."""
    wait_for(
        process,
        lambda: sum(event["attempt"] == attempt for event in events(run_dir, "step")) >= steps,
    )


def wait_for(process: Any, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; the job must be running till then."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def write_corpus(folder: Path) -> None:
    """A few files of text with something to learn in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(24):
        sentences = [
            f"The {('red', 'green', 'blue')[(number + i) % 3]} mill grinds {i} sacks of "
            f"{('wheat', 'rye', 'oats', 'barley')[(number * i) % 4]} before day {number + i}.\n"
            for i in range(60)
        ]
        (folder / f"{number:02d}.txt").write_text("".join(sentences))
