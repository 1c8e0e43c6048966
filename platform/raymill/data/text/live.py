"""Progress within a unit, which takes minutes where units are large.

The unit's task leaves its counts in a small file of the prepared folder, which the driver reads: so it works
on every node that shares the folder, and costs nothing else.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from raymill.durable import canonical_json
from raymill.reading import MISSING, entries, read_text

# Folder of the notes, inside the prepared one while it is being prepared.
LIVE_FOLDER = "live"
# Seconds between two notes.
EVERY_S = 2.0


class CountingDigest:
    """A sha256 that knows how many bytes it has seen."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.bytes = 0

    def update(self, content: bytes) -> None:
        """Hash more bytes."""
        self._digest.update(content)
        self.bytes += len(content)

    def hexdigest(self) -> str:
        """Return the digest so far."""
        return self._digest.hexdigest()


class LiveNote:
    """Note of a running unit: bytes of input read and tokens made so far; removed when it ends."""

    def __init__(self, folder: Path, index: int) -> None:
        self._path = folder / f"{index:05d}.json"
        self._next = time.monotonic() + EVERY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._path.unlink(missing_ok=True)

    def write(self, read: int, tokens: int) -> None:
        """Note the counts, at most every few seconds."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_S
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_text(canonical_json({"read": read, "tokens": tokens}))


def live_counts(folder: Path) -> dict[int, tuple[int, int]]:
    """Return (bytes read, tokens) of every running unit by its number."""
    found = {}
    for path in entries(folder):
        try:
            note = json.loads(read_text(path))
            found[int(path.stem)] = int(note["read"]), int(note["tokens"])
        # A unit may end, or be writing its note, at this moment.
        except (*MISSING, ValueError, KeyError, TypeError):
            continue
    return found
