"""State log of a run, history.jsonl: one line per state, written by the driver that holds the run's lease."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from raymill.durable import cut_torn_line
from raymill.reading import MISSING, read_text

HISTORY_NAME = "history.jsonl"

# A line of history.jsonl: `time`, `token` and `state`, and the facts of that state.
StateLine = dict[str, Any]


class StateLog:
    """Appends states; a state that lasts is written once.

    A line that can't be written, as on a full disk, is left out: the run matters more than its history.
    """

    def __init__(self, run_dir: Path, token: int) -> None:
        self._path = run_dir / HISTORY_NAME
        self._token = token
        self._state: str | None = None

    def enter(self, state: str, **facts: object) -> None:
        """Record that the run enters a state."""
        if state == self._state and not facts:
            return
        self._state = state
        line = {"time": time.time(), "token": self._token, "state": str(state), **facts}
        with suppress(OSError):
            # A disk that was full may have taken a part of the line before.
            cut_torn_line(self._path)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


def read_history(run_dir: Path) -> list[StateLine]:
    """Return all complete lines, oldest first; none if there is no history."""
    try:
        lines = read_text(run_dir / HISTORY_NAME).splitlines(keepends=True)
    except MISSING:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]
