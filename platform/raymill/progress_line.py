"""Progress of a job in one line: updated in place on a terminal, repeated every few seconds
elsewhere.

Moving lines would break the logs of submitted jobs, so the same text is printed there as plain
lines.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

# With less input than this, a rate in megabytes means nothing.
MEASURED_BYTES = 10_000


def rate_text(read: int, total: int, earlier: int, seconds: float, also: str = "") -> str:
    """Return `24.1 of 96.3 MB, 2.1 MB/s, 34 s left`, with `also` before the rate.

    `earlier`: bytes of those read that an earlier try had done, which don't count in the rate.
    """
    rate = (read - earlier) / max(seconds, 1e-9)
    left = f", {(total - read) / rate:.0f} s left" if rate else ""
    return f"{read / 1e6:.1f} of {total / 1e6:.1f} MB, {also}{rate / 1e6:.1f} MB/s{left}"


class ProgressLine:
    """Context manager around the work; `show` may be called as often as convenient.

    Elsewhere than on a terminal the first plain line is printed at once, or, with `patient`, after
    `plain_every_s` like the others, so that short work prints nothing.
    """

    def __init__(
        self, plain_every_s: float, patient: bool = False, console: Console | None = None
    ) -> None:
        self.console = console or Console()
        self._live = Live(console=self.console, refresh_per_second=4, transient=True)
        self._plain_every_s = plain_every_s
        self._last_printed = time.monotonic() - (0.0 if patient else plain_every_s)
        # Time of the last line of any kind.
        self._last_output = time.monotonic()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a plain line that stays; a long path in it isn't wrapped, so that it can be
        copied."""
        self._last_output = time.monotonic()
        self.console.print(Text(text), soft_wrap=True)

    def wait(self, text: str) -> None:
        """Report a wait; it doesn't count as a plain line of progress."""
        if self.console.is_terminal:
            self._last_output = time.monotonic()
            self._live.update(Text(text, style="dim"))
        else:
            self.say(text)

    def idle(self, text: str) -> None:
        """Report a wait if nothing was printed for the time between two plain lines; call it often."""
        if time.monotonic() - self._last_output >= self._plain_every_s:
            self.wait(text)

    def show(self, text: str) -> None:
        """Update the text of the line."""
        now = time.monotonic()
        if self.console.is_terminal:
            self._last_output = now
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"))
        elif now - self._last_printed >= self._plain_every_s:
            self._last_printed = now
            self.say(text)
