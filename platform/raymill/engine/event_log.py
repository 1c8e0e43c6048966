"""Event log of a run, metrics.jsonl: one event per line, written by rank 0 alone.

It is the run's own record, and the spool from which tracking sends metrics on.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raymill.durable import cut_torn_line, write_atomic
from raymill.reading import is_file, opened

# One line of the log: its kind, step, attempt and time, and the kind's own values.
Event = dict[str, Any]


class EventLog:
    """Appends events.

    A line that a killed attempt left half-written is cut off when the log is opened. Lines that a full disk
    refuses are kept in memory and written with the next ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        self.attempt = 1 + attempts_in(path)
        # Unbuffered, so that a worker that is killed leaves every event it has logged.
        self._stream = path.open("ab", buffering=0)
        self._pending = b""

    def write(self, kind: str, step: int, **values: object) -> None:
        """Append one event and hand it to the operating system at once.

        Non-finite numbers become null, since JSON has none.
        """
        event: Event = {
            "kind": kind,
            "step": step,
            "attempt": self.attempt,
            "time": time.time(),
            **values,
        }
        finite = {key: None if _is_nonfinite(value) else value for key, value in event.items()}
        self._pending += json.dumps(finite, allow_nan=False).encode() + b"\n"
        # A full disk doesn't end a run: checkpoints are tried again later, and so is this line.
        with suppress(OSError):
            while self._pending:
                self._pending = self._pending[self._stream.write(self._pending) :]

    @contextmanager
    def optional_write(self, what: str, step: int) -> Iterator[None]:
        """Wrap a write that the run can do without: an OSError becomes a message in the log."""
        try:
            yield
        except OSError as error:
            self.write("message", step, text=f"{what} of step {step} can't be written: {error}")

    def sync(self) -> None:
        """Flush to the disk, as far as it accepts it."""
        with suppress(OSError):
            os.fsync(self._stream)

    def close(self) -> None:
        """Close the file; no event can be written after that."""
        self._stream.close()


def _is_nonfinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def attempts_in(path: Path) -> int:
    """Return the number of attempts that have started to write an event log."""
    if not is_file(path):
        return 0
    with opened(path) as stream:
        return sum(b'"kind": "attempt"' in line and line.endswith(b"\n") for line in stream)


def write_table(
    run_dir: Path,
    event_log: EventLog,
    name: str,
    step: int,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> None:
    """Write `samples/<name>-<step>.json`, a table that MLflow's page shows as such, and log its path."""
    path = f"samples/{name}-{step:08d}.json"
    table = {"columns": list(columns), "data": [list(row) for row in rows]}
    with event_log.optional_write(f"the table of {name}", step):
        (run_dir / "samples").mkdir(exist_ok=True)
        write_atomic(run_dir / path, json.dumps(table, ensure_ascii=False, indent=1))
        event_log.write("answers", step, answers_path=path)


def round_reward(reward: float) -> float | None:
    """Return a reward as tables show it; NaN, which stands for a missing reward, becomes None."""
    return None if math.isnan(reward) else round(float(reward), 4)
