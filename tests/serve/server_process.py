"""A server's process over a tiny random model, as a user starts it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
# Time in which a busy machine loads a model.
START_S = 120


@dataclass
class ServerProcess:
    """A process that serves at an address, and the lines that it printed."""

    process: subprocess.Popen[str]
    address: str
    lines: list[str]

    def values(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and values of a metric."""
        text = httpx2.get(f"{self.address}/metrics").text
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        ]

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric."""
        for known, value in self.values(name):
            if labels.items() <= known.items():
                return value
        raise AssertionError(f"there is no metric {name}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(how)
        return self.process.wait(30)


@contextmanager
def server_process(*overrides: str) -> Iterator[ServerProcess]:
    """Start `jobs/serve.py` at any free port, and wait until it says its address."""
    command = [sys.executable, "jobs/serve.py", "port=0", "tracking=none", *overrides]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    found = threading.Event()
    address = ""

    def read() -> None:
        nonlocal address
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if match := re.search(r" at (http://\S+)", line):
                address = match[1]
                found.set()
        found.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        assert found.wait(START_S) and address, "".join(lines)
        yield ServerProcess(process, address, lines)
    finally:
        process.kill()
        process.wait()
        thread.join()


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for something that the server does."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it didn't happen in time"
        time.sleep(0.02)
