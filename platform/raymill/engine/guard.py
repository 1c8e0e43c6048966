"""Guard against divergence: losses that aren't learned from, and samples that a run leaves out.

Checkpoints keep the guard's state, so that a resumed run decides as an uninterrupted one would.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from raymill.durable import write_atomic
from raymill.reading import read_json
from raymill.schema.sections import GuardConfig

LEFT_OUT_NAME = "left-out.json"
MAX_LOSSES = 64  # recent losses that a new one is compared with
MIN_LOSSES = 20  # fewer say too little about what is normal
# The median absolute deviation of normally distributed values is 1/1.4826 of their standard deviation.
_MAD_TO_SIGMA = 1.4826


class Guard:
    """Decides which losses aren't learned from.

    Every rank decides the same, since the loss that it is asked about is the global one.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        # Model → updates skipped since the last one that was applied.
        self.consecutive: dict[str, int] = {}
        # First and last global sample of each window that wasn't learned from.
        self.skipped: list[tuple[int, int]] = []
        self._losses: deque[float] = deque(maxlen=MAX_LOSSES)

    def refusal(self, loss: float) -> str | None:
        """Return the reason for which a loss isn't to be learned from; None if it is."""
        if not math.isfinite(loss):
            return "is not finite"
        # None switches the check for spikes off.
        limit = self.config.spike_z
        if limit is None or len(self._losses) < MIN_LOSSES:
            return None
        z = robust_z(loss, list(self._losses))
        if z <= limit:
            return None
        count = len(self._losses)
        return (
            f"({loss:.4f}) is {z:.1f} robust standard deviations above the median of {count} steps"
        )

    def record_loss(self, loss: float) -> None:
        """Record the loss of a step that was learned from."""
        self._losses.append(loss)

    def record_update(self, model: str) -> None:
        """Record that an update of a model was applied."""
        self.consecutive.pop(model, None)

    def record_skip(self, model: str, first: int, last: int) -> bool:
        """Record that an update of a model was skipped, and the global samples that it would have learned from.

        Return False if that makes too many in a row.
        """
        self.consecutive[model] = self.consecutive.get(model, 0) + 1
        self.skipped.append((first, last))
        return self.consecutive[model] <= self.config.max_consecutive

    def add_skipped(self, windows: Iterable[tuple[int, int]]) -> None:
        """Record windows of samples that the run passes over after a rewind."""
        self.skipped += [window for window in windows if window not in self.skipped]

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint keeps, as JSON."""
        return {
            "skipped_in_a_row": dict(self.consecutive),
            "skipped": [list(pair) for pair in self.skipped],
            "losses": list(self._losses),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint's state."""
        self.consecutive = dict(state.get("skipped_in_a_row", {}))
        self.skipped = [(first, last) for first, last in state.get("skipped", [])]
        self._losses = deque(state.get("losses", []), maxlen=MAX_LOSSES)


def robust_z(value: float, others: list[float]) -> float:
    """Return the deviation from the others' median, in robustly estimated standard deviations.

    They are estimated by the median absolute deviation (Iglewicz and Hoaglin 1993). The result is infinite if
    the others are all equal and the value differs.
    """
    median = statistics.median(others)
    deviation = _MAD_TO_SIGMA * statistics.median(abs(other - median) for other in others)
    if deviation == 0:
        return 0.0 if value == median else math.copysign(math.inf, value - median)
    return (value - median) / deviation


class LeftOut(TypedDict):
    """Window of global samples that a run passes over, and the reason."""

    first: int
    last: int
    why: str


def leave_out(run_dir: Path, first: int, last: int, why: str) -> None:
    """Note that the run is to pass over these global samples, which follow its last checkpoint."""
    window: LeftOut = {"first": first, "last": last, "why": why}
    write_atomic(run_dir / LEFT_OUT_NAME, json.dumps([*_left_out(run_dir), window], indent=1))


def windows_from(run_dir: Path, sample: int) -> tuple[tuple[int, int], ...]:
    """Return (first, last) of the windows left out that follow a position without a gap, in order."""
    # Windows of other checkpoints, from which the run may start again, stay in the file.
    ends = dict(noted_windows(run_dir))
    windows = []
    while sample in ends:
        windows.append((sample, ends[sample]))
        sample = ends[sample] + 1
    return tuple(windows)


def noted_windows(run_dir: Path) -> list[tuple[int, int]]:
    """Return (first, last) of every window that was ever noted."""
    return [(window["first"], window["last"]) for window in _left_out(run_dir)]


def _left_out(run_dir: Path) -> list[LeftOut]:
    windows: list[LeftOut] = read_json(run_dir / LEFT_OUT_NAME, missing=[])
    return windows
