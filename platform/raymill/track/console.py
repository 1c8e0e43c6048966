"""What a run says on the terminal: one live line while it trains, plain lines for what happened."""

from __future__ import annotations

import statistics
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_EVERY_S = 10.0


class RunConsole:
    """Shows a run's events. On a terminal the progress line moves; elsewhere a plain one comes
    every few seconds, since moving ones would break the logs of submitted jobs."""

    def __init__(self, peak_is_measured: bool, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._share_name = "of peak" if peak_is_measured else "MFU"
        self._total = 0
        self._recent: deque[float] = deque(maxlen=20)
        self._bits: float | None = None
        self._said = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """One plain line."""
        self._console.print(Text(text), soft_wrap=True)

    def waiting(self, text: str) -> None:
        """What is going on before the first step."""
        if self._console.is_terminal:
            self._live.update(Text(text, style="dim"))
        else:
            self.say(text)

    def show(self, event: dict[str, Any]) -> None:
        """React to one event of the journal."""
        kind = event["kind"]
        if kind == "step":
            self._progress(event)
        elif kind == "attempt":
            self._total = event["total_steps"]
            for message in event["messages"]:
                self.say(f"warning: {message}")
            if event["resumed"]:
                self.say(
                    f"resumed at step {event['step']} from {Path(event['resumed_from']).name} "
                    f"(attempt {event['attempt']})"
                )
        elif kind == "evaluation":
            self._bits = event["eval/bits_per_byte"]
            self.say(
                f"step {event['step']:>6}  held-out loss {event['eval/loss']:.4f}, perplexity "
                f"{event['eval/perplexity']:.1f}, {self._bits:.4f} bits per byte"
            )
        elif kind == "checkpoint":
            self.say(
                f"step {event['step']:>6}  checkpoint {Path(event['path']).name} "
                f"({event['seconds']:.1f} s)"
            )

    def _progress(self, event: dict[str, Any]) -> None:
        self._recent.append(event["perf/step_s"])
        line = self._line(event)
        now = time.monotonic()
        if self._console.is_terminal:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif now - self._said >= PLAIN_EVERY_S:
            self._said = now
            self.say(line)

    def _line(self, event: dict[str, Any]) -> str:
        # The first steps of an attempt are slow and say nothing about the rest.
        known = len(self._recent) >= 4
        left = (self._total - event["step"]) * statistics.median(self._recent)
        bits = "" if self._bits is None else f"  {self._bits:.3f} bits/byte"
        return (
            f"step {event['step']:>6}/{self._total}  loss {event['train/loss']:.4f}{bits}  "
            f"{event['perf/tokens_per_s']:,.0f} tokens/s  {event['perf/mfu']:.0%} "
            f"{self._share_name}" + (f"  {_duration(left)} left" if known else "")
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
