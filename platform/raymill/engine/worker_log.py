"""A worker's output belongs in a file of the run, not on the user's terminal."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path


def send_output_to(path: Path) -> None:
    """Append everything this process prints from now on, C libraries included, to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    # Ray replaces the streams by wrappers of its own; libraries logging through them would be lost.
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    warnings.simplefilter("once")
