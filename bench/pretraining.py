"""Runs of jobs/pretrain.py on prepared data, for the benches that measure them."""

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
    """A storage root with prepared data, for as long as it is needed; `parent`: on whose disk."""
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        (folder / "data").symlink_to(ROOT / "storage" / "data")
        yield folder


def journal_of(root: Path, name: str, *overrides: str) -> list[dict[str, Any]]:
    """Train a run to its end; what its journal holds. A job that fails ends the process with its output."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *overrides, f"storage.root={root}",
         f"run.name={name}"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
