"""Signals that ask a run to end. Ctrl-C once, or SIGTERM: commit and stop. Ctrl-C twice: stop now, and lose at
most one checkpoint interval."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_signals(interrupted: Callable[[], None], terminated: Callable[[], None]) -> Iterator[None]:
    """Within the block, the first SIGINT calls `interrupted` and the second raises KeyboardInterrupt;
    SIGTERM calls `terminated`, once: whoever sends it again kills next."""

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted()

    def on_termination(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        terminated()

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, on_termination)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
