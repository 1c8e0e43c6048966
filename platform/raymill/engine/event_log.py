"""metrics.jsonl: one line an event, written by rank 0 alone; the run's own record and tracking's spool."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raymill.durable import cut_torn_line
from raymill.reading import is_file, opened


class EventLog:
    """Appends events. A line that a killed attempt left half-written is cut off at the start. What a full disk
    doesn't take is kept, and written when it does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        self.attempt = 1 + attempts_in(path)
        self._stream = path.open("ab", buffering=0)
        self._pending = b""

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one event and hand it to the operating system at once.

        Non-finite numbers become null: JSON has none.
        """
        event = {"kind": kind, "step": step, "attempt": self.attempt, "time": time.time(), **values}
        finite = {key: None if _is_nonfinite(value) else value for key, value in event.items()}
        self._pending += json.dumps(finite, allow_nan=False).encode() + b"\n"
        # A checkpoint that can't be written doesn't end the run; this doesn't either.
        with suppress(OSError):
            while self._pending:
                self._pending = self._pending[self._stream.write(self._pending) :]

    @contextmanager
    def without(self, what: str, step: int) -> Iterator[None]:
        """A block that writes something of which the run could do without: where the disk refuses it, that is
        told, and no more."""
        try:
            yield
        except OSError as error:
            self.write("message", step, text=f"{what} of step {step} can't be written: {error}")

    def sync(self) -> None:
        """Flush to the disk, as far as it takes it."""
        with suppress(OSError):
            os.fsync(self._stream)

    def close(self) -> None:
        """No more events come from here."""
        self._stream.close()


def _is_nonfinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def attempts_in(path: Path) -> int:
    """How often workers have begun to write a journal."""
    if not is_file(path):
        return 0
    with opened(path) as stream:
        return sum(b'"kind": "attempt"' in line and line.endswith(b"\n") for line in stream)
