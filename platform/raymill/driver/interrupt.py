"""Signals that ask a run to end. Ctrl-C once, or SIGTERM: commit and stop. Ctrl-C twice: stop now, and lose
what was made since the last checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from raymill.config.entry import EXIT_PREEMPTED


@contextmanager
def on_interrupt(call: Callable[[], None]) -> Iterator[None]:
    """Within the block, the first SIGINT calls and the second raises KeyboardInterrupt."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        call()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def on_termination(call: Callable[[], None]) -> Iterator[None]:
    """Within the block, SIGTERM calls, once: it is ignored from then on, whoever sends it again kills next."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        call()

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        if not terminated():
            signal.signal(signal.SIGTERM, previous)


def terminated() -> bool:
    """Whether `on_termination` was called; what was under way then may have gone on to its end."""
    return signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def end_preempted(words: str) -> None:
    """What SIGTERM does where there is nothing to commit: end with the exit code that says so."""
    print(words, flush=True)
    raise SystemExit(EXIT_PREEMPTED)
