"""history.jsonl: a line for each state that a run was in, written by the driver that holds its lease."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from raymill.cluster.failure import RunState

HISTORY_NAME = "history.jsonl"


class History:
    """Appends; a state that lasts is written once."""

    def __init__(self, run_dir: Path, token: int) -> None:
        self._path = run_dir / HISTORY_NAME
        self._token = token
        self._state: RunState | None = None

    def enter(self, state: RunState, **facts: Any) -> None:
        """The run is in this state from now on."""
        if state == self._state and not facts:
            return
        self._state = state
        line = {"time": time.time(), "token": self._token, "state": state.value, **facts}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
