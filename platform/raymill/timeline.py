"""Records when a start reached which point, for `bench/start.py`: a line per mark in the file that
RAYMILL_TIMELINE names, nothing where it names none."""

from __future__ import annotations

import os
import time

VARIABLE = "RAYMILL_TIMELINE"


def mark(reached: str) -> None:
    """Record that this process has reached a point."""
    path = os.environ.get(VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(f"{time.time():.4f}\t{os.getpid()}\t{reached}\n")
