"""Terminal output of a run: one live progress line, and plain lines for its events."""

from __future__ import annotations

import statistics
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from raymill.engine.event_log import Event
from raymill.progress_line import ProgressLine

PLAIN_EVERY_S = 10.0
# Mean exp|log μ − log π_old| above which the samplers' distribution μ differs from the policy π_old.
MAX_LAG = 1.05


class RunConsole:
    """Shows a run's events."""

    def __init__(self, peak_is_measured: bool) -> None:
        self._progress_line = ProgressLine(PLAIN_EVERY_S)
        self._share_name = "of peak" if peak_is_measured else "MFU"
        self._total = 0
        self._recent: deque[float] = deque(maxlen=20)
        self._bits: float | None = None

    def __enter__(self) -> Self:
        self._progress_line.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress_line.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """Print a plain line."""
        self._progress_line.say(text)

    def waiting(self, text: str) -> None:
        """Show the state of a run that has made no step yet."""
        self._progress_line.wait(text)

    def idle(self, text: str) -> None:
        """Show the state of a run of which nothing was printed for ten seconds; call it often."""
        self._progress_line.idle(text)

    def show(self, event: Event) -> None:
        """Show one event of the event log."""
        kind = event["kind"]
        if kind == "step":
            # Importance weights correct a small lag; a larger one means that sampler and trainer disagree.
            if event.get("sampler/ratio", 1.0) > MAX_LAG:
                self.say(
                    f"warning: step {event['step']}: the samplers' probabilities differ from the policy's "
                    f"by a factor of {event['sampler/ratio']:.3f} on average"
                )
            self._progress(event)
        elif kind == "attempt":
            # A run that was resumed may have another number of steps.
            self._total = event["total_steps"]
            for message in event["messages"]:
                self.say(f"warning: {message}")
            if event["resumed"]:
                self.say(
                    f"resumed at step {event['step']} from {Path(event['resumed_from']).name} "
                    f"(attempt {event['attempt']})"
                )
        elif kind == "message":
            self.say(f"warning: {event['text']}")
        elif kind == "evaluation":
            self._evaluation(event)
        elif kind == "checkpoint":
            self.say(
                f"step {event['step']:>6}  checkpoint {Path(event['path']).name} "
                f"({event['seconds']:.1f} s)"
            )

    def _evaluation(self, event: Event) -> None:
        if "eval/loss" in event:
            self._bits = event["eval/bits_per_byte"]
            self.say(
                f"step {event['step']:>6}  held-out loss {event['eval/loss']:.4f}, perplexity "
                f"{event['eval/perplexity']:.1f}, {self._bits:.4f} bits per byte{_by_source(event)}"
            )
        if "answers/loss" in event:
            ended = event.get("answers/ended")
            self.say(
                f"step {event['step']:>6}  answers: loss {event['answers/loss']:.4f}, F1 "
                f"{event.get('answers/f1', 0):.3f}"
                + ("" if ended is None else f", {ended:.0%} ended")
            )

        if "pairs/loss" in event:
            self.say(
                f"step {event['step']:>6}  held-out pairs: loss {event['pairs/loss']:.4f}, "
                f"{event['pairs/reward/accuracy']:.1%} ranked right"
            )
        if "prompts/reward" in event:
            self.say(
                f"step {event['step']:>6}  held-out prompts: reward {event['prompts/reward']:+.4f}, "
                f"KL {event['prompts/kl']:.3f}, {event['prompts/length']:.0f} tokens per answer"
            )

    def _progress(self, event: Event) -> None:
        self._recent.append(event["perf/step_s"])
        self._progress_line.show(self._line(event))

    def _line(self, event: Event) -> str:
        # The first steps of an attempt are slower than the rest, so they don't give an estimate.
        known = len(self._recent) >= 4
        left = (self._total - event["step"]) * statistics.median(self._recent)
        bits = "" if self._bits is None else f"  {self._bits:.3f} bits/byte"
        if "rollout/reward" in event:
            bits = f"  reward {event['rollout/reward']:+.3f}"
        return (
            f"step {event['step']:>6}/{self._total}  loss {_number(event['train/loss'])}{bits}  "
            f"{event['perf/tokens_per_s']:,.0f} tokens/s  {event['perf/mfu']:.0%} "
            f"{self._share_name}" + (f"  {_duration(left)} left" if known else "")
        )


def _by_source(event: Event) -> str:
    """Return ` (wiki 1.0312, code 0.7720)`: bits per byte by source, if there are several."""
    prefix, suffix = "eval/", "/bits_per_byte"
    listed = ", ".join(
        f"{name.removeprefix(prefix).removesuffix(suffix)} {value:.4f}"
        for name, value in event.items()
        if name.startswith(prefix) and name.endswith(suffix) and name.count("/") > 1
    )
    return f" ({listed})" if listed else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _number(value: float | None) -> str:
    """Format a metric; a non-finite one is null in the event log."""
    return "not finite" if value is None else f"{value:.4f}"
