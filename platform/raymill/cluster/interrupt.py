"""Ctrl-C once: commit and stop. Ctrl-C twice: stop now, and lose at most one checkpoint interval."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_interrupt(first: Callable[[], None]) -> Iterator[None]:
    """Within the block, the first SIGINT calls `first`; the second raises KeyboardInterrupt."""
    previous = signal.getsignal(signal.SIGINT)

    def handler(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        first()

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
