"""A rank's sign of life: which step it is at, and what it is doing. One small record in a file, overwritten
in place, for whoever watches from outside."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from raymill.reading import MISSING, read_bytes

NODE = "RAYMILL_NODE"  # the variable with the id of the Ray node that a worker is on
# For each other; twice what the watchdog gives the longest phase, so that it names who is late.
WAIT_S = 7200
_BYTES = 512
COMPILE = "compile"  # what a rank does aside


def place() -> dict[str, Any]:
    """Where this process is."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "node": os.environ.get(NODE, "")}


class Heartbeat:
    """Written by the rank's training thread alone. All ranks go through the same phases, so that who counts
    fewer beats is behind."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(_path(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._place = place()
        self._beats, self._phase = 0, "start"
        self.step = 0

    def beat(self, phase: str) -> None:
        """The rank is in this phase of its step now."""
        self._beats += 1
        self._phase = phase
        self._write(phase)

    def aside(self, phase: str | None) -> None:
        """Within its phase the rank does something that the others needn't do; None: no longer."""
        self._write(phase or self._phase)

    def _write(self, phase: str) -> None:
        now = {"beat": self._beats, "step": self.step, "phase": phase}
        record = json.dumps(now | self._place)
        os.pwrite(self._file, record.ljust(_BYTES).encode(), 0)


def read_pulse(folder: Path, rank: int) -> dict[str, Any] | None:
    """Return what a rank wrote last; None before its first, and where it is being written.

    Raises:
        StorageError: it can't be read, which says nothing about the rank.
    """
    try:
        found: dict[str, Any] = json.loads(read_bytes(_path(folder, rank)))
    except (*MISSING, ValueError):
        return None
    return found


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.pulse"
