"""Heartbeat of a rank: its step and phase, in one small file that the driver's watchdog reads."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TypedDict

from raymill.reading import MISSING, read_bytes

# The environment variable with the id of the Ray node that a worker runs on.
NODE = "RAYMILL_NODE"
# Twice what the watchdog allows the longest phase, so that the watchdog names the slow rank before the
# collectives of the ranks waiting for it time out.
COLLECTIVE_TIMEOUT_S = 7200
COMPILE = "compile"  # the phase of a rank that compiles while others need not
_RECORD_BYTES = 512


class Location(TypedDict):
    """Host, process and Ray node of a rank."""

    host: str
    pid: int
    node: str


class HeartbeatRecord(Location):
    """Content of a heartbeat file."""

    beat: int  # phases entered so far
    step: int
    phase: str


def process_location() -> Location:
    """Return the location of this process."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "node": os.environ.get(NODE, "")}


class Heartbeat:
    """Writer of a rank's heartbeat, used by its training thread alone.

    All ranks go through the same phases, so a rank that counts fewer beats is behind.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(_path(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        # Looked up once: a heartbeat is written several times per step.
        self._location = process_location()
        self._beats, self._phase = 0, "start"
        self.step = 0

    def beat(self, phase: str) -> None:
        """Record that the rank enters this phase of its step."""
        self._beats += 1
        self._phase = phase
        self._write(phase)

    def aside(self, phase: str | None) -> None:
        """Record work within the phase that the other ranks need not do; None ends it. It isn't a beat."""
        self._write(phase or self._phase)

    def _write(self, phase: str) -> None:
        state = {"beat": self._beats, "step": self.step, "phase": phase}
        record = json.dumps(state | self._location)
        # One write of a fixed length, so that a reader never sees the rest of a longer record.
        os.pwrite(self._file, record.ljust(_RECORD_BYTES).encode(), 0)


def read_heartbeat(folder: Path, rank: int) -> HeartbeatRecord | None:
    """Return a rank's last record; None before its first, and while it is being written.

    Raises:
        StorageError: the file can't be read, which says nothing about the rank.
    """
    try:
        record: HeartbeatRecord = json.loads(read_bytes(_path(folder, rank)))
    except (*MISSING, ValueError):
        return None
    return record


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.pulse"
