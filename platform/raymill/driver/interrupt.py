"""Signals that ask a run to end.

Ctrl-C once, or SIGTERM: commit a checkpoint and stop. Ctrl-C twice: stop now, and lose the work since the last
checkpoint.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from raymill.config.entry import EXIT_PREEMPTED
from raymill.redaction import typed_command


@contextmanager
def on_interrupt(call: Callable[[], None]) -> Iterator[None]:
    """Context in which the first SIGINT calls `call` and the second raises KeyboardInterrupt."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        # A second Ctrl-C interrupts at once.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        call()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def on_termination(call: Callable[[], None]) -> Iterator[None]:
    """Context in which the first SIGTERM calls `call`; later ones are ignored.

    A machine's owner who isn't satisfied with that sends SIGKILL next.
    """

    def handle(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        call()

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        # The signal stays ignored after the block, which is how `terminated` knows of it.
        if not terminated():
            signal.signal(signal.SIGTERM, previous)


def terminated() -> bool:
    """Tell whether SIGTERM came within `on_termination`; the work under way may have been completed since."""
    return signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def end_preempted(message: str) -> None:
    """End the process with the exit code of a preempted run, where there is nothing to commit."""
    print(message, flush=True)
    raise SystemExit(EXIT_PREEMPTED)


def preemption_message() -> str:
    """Return the message for a run that is ended by the machine's owner."""
    return f"preempted, resume with the same command:\n  {typed_command()}"
