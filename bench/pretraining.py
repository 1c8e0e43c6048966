"""Runs of jobs/pretrain.py on prepared data, for the benchmarks that measure them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def storage(parent: Path | None = None) -> Iterator[Path]:
    """Give a temporary storage root with prepared data; `parent` chooses the disk."""
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        (folder / "data").symlink_to(ROOT / "storage" / "data")
        yield folder


def run_events(root: Path, name: str, *overrides: str) -> list[dict[str, Any]]:
    """Train a run to its end and return its events; exit with the output of a job that fails."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *overrides, f"storage.root={root}",
         f"run.name={name}"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
