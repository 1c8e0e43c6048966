"""Heartbeat of a rank: its step and phase, in one small file in the memory of its machine.

No shared storage is involved: the driver reads the files of its own node, and has those of other nodes read
there (`driver/heartbeats.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TypedDict

from raymill.reading import MISSING, entries, read_bytes

# The environment variable with the id of the Ray node that a worker runs on.
NODE = "RAYMILL_NODE"
# Twice what the watchdog allows the longest phase, so that the watchdog names the slow rank before the
# collectives of the ranks waiting for it time out.
COLLECTIVE_TIMEOUT_S = 7200
COMPILE = "compile"  # the phase of a rank that compiles while others need not
_RECORD_BYTES = 512
_SUFFIX = ".pulse"
_MEMORY = Path("/dev/shm")


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


def heartbeat_folder(start: str, node: str) -> Path:
    """Return the folder, on a Ray node's own machine, of the heartbeats of a run's start.

    The node's id is part of the path, since several simulated nodes may share a machine.
    """
    root = _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())
    return root / f"raymill-{os.getuid()}" / (node or "local") / start


class Heartbeat:
    """Writer of a rank's heartbeat, used by its training thread alone.

    All ranks go through the same phases, so a rank that counts fewer beats is behind.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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


def read_heartbeats(folder: Path) -> dict[int, HeartbeatRecord]:
    """Return rank → last record of all ranks that have one in a folder.

    Raises:
        StorageError: a file can't be read, which says nothing about the ranks.
    """
    records = {}
    for path in entries(folder):
        if path.suffix == _SUFFIX and (record := _read(path)) is not None:
            records[int(path.stem.removeprefix("rank-"))] = record
    return records


def remove_heartbeats(folder: Path) -> None:
    """Delete a start's heartbeats, and those of its run's earlier starts that nobody deleted."""
    run, _, number = folder.name.rpartition("-")
    for other in entries(folder.parent):
        earlier_run, _, earlier = other.name.rpartition("-")
        if earlier_run == run and _counted(earlier) <= _counted(number):
            shutil.rmtree(other, ignore_errors=True)


def _counted(number: str) -> tuple[int, ...]:
    """Return the numbers of the lease's token and of the start."""
    return tuple(map(int, number.split(".")))


def _read(path: Path) -> HeartbeatRecord | None:
    try:
        record: HeartbeatRecord = json.loads(read_bytes(path))
    except (*MISSING, ValueError):
        return None
    return record


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}{_SUFFIX}"
