"""Record the progress of a start, for `bench/start.py`.

Each mark is one line in the file that RAYMILL_TIMELINE names; without the variable, nothing is
recorded.
"""

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
