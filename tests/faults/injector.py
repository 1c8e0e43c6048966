"""Faults for a job's processes: what `sitecustomize.py` beside this file makes happen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def with_faults(folder: Path, *faults: dict[str, Any]) -> dict[str, str]:
    """Environment variables under which these happen, once each; `folder` keeps which did."""
    path = folder / "faults.json"
    path.write_text(json.dumps(faults))
    inherited = os.environ.get("PYTHONPATH", "")
    paths = os.pathsep.join(filter(None, (str(HERE), inherited)))
    return {"RAYMILL_FAULTS": str(path), "PYTHONPATH": paths}


def happened(folder: Path) -> int:
    """How many of them did."""
    return len(list(folder.glob("faults.json.*.done")))
