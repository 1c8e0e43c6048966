"""Questions and answers as tables: files that MLflow shows as such."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raymill.durable import write_atomic
from raymill.engine.event_log import EventLog


def write_table(
    run_dir: Path,
    event_log: EventLog,
    name: str,
    step: int,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
) -> None:
    """Write `samples/<name>-<step>.json`, and say so in the journal."""
    path = f"samples/{name}-{step:08d}.json"
    table = {"columns": list(columns), "data": [list(row) for row in rows]}
    with event_log.without(f"the table of {name}", step):
        (run_dir / "samples").mkdir(exist_ok=True)
        write_atomic(run_dir / path, json.dumps(table, ensure_ascii=False, indent=1))
        event_log.write("answers", step, answers_path=path)


def rounded(reward: Any) -> float | None:
    """A reward as a table shows it; one that is NaN was not given."""
    return None if np.isnan(reward) else round(float(reward), 4)
