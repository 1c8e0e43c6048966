"""Faults for a job's processes, which `sitecustomize.py` in this folder injects."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def with_faults(folder: Path, *faults: dict[str, Any]) -> dict[str, str]:
    """Return environment variables that inject these faults, once each; `folder` records them."""
    path = folder / "faults.json"
    path.write_text(json.dumps(faults))
    inherited = os.environ.get("PYTHONPATH", "")
    paths = os.pathsep.join(filter(None, (str(HERE), inherited)))
    return {"RAYMILL_FAULTS": str(path), "PYTHONPATH": paths}


def happened(folder: Path) -> int:
    """Return the number of faults that happened."""
    return len(list(folder.glob("faults.json.*.done")))
