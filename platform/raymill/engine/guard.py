"""Against divergence: which losses aren't learned from, and what follows when there is one.

Its memory is kept by checkpoints, so that a resumed run judges as the one that was never stopped.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raymill.durable import write_atomic
from raymill.reading import read_json
from raymill.schema.sections import GuardConfig

REMEMBERED = 64  # losses that a new one is compared with
LEFT_OUT_NAME = "left-out.json"
NEEDED = 20  # of them, before a spike can be told
# The median absolute deviation of normally distributed values is 1/1.4826 of their standard deviation.
_MAD_TO_SIGMA = 1.4826


class Guard:
    """Judges each step's loss; every rank comes to the same, the loss being of all of them."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        # By model: updates skipped since the last one that was made.
        self.in_a_row: dict[str, int] = {}
        self.skipped: list[
            tuple[int, int]
        ] = []  # first and last global sample of what was left out
        self._losses: deque[float] = deque(maxlen=REMEMBERED)

    def refusal(self, loss: float) -> str | None:
        """Why a loss isn't to be learned from; None where it is."""
        if not math.isfinite(loss):
            return "is not finite"
        limit = self.config.spike_z
        if limit is None or len(self._losses) < NEEDED:
            return None
        z = robust_z(loss, list(self._losses))
        if z <= limit:
            return None
        count = len(self._losses)
        return (
            f"({loss:.4f}) is {z:.1f} robust standard deviations above the median of {count} steps"
        )

    def learned(self, loss: float) -> None:
        """A step was learned from."""
        self._losses.append(loss)

    def made(self, model: str) -> None:
        """An update of a model was made."""
        self.in_a_row.pop(model, None)

    def skip(self, model: str, first: int, last: int) -> bool:
        """These samples are left out; returns whether so many in a row of a model are still admitted."""
        self.in_a_row[model] = self.in_a_row.get(model, 0) + 1
        self.skipped.append((first, last))
        return self.in_a_row[model] <= self.config.max_consecutive

    def left_out(self, windows: Iterable[tuple[int, int]]) -> None:
        """Samples that the run goes on past."""
        self.skipped += [window for window in windows if window not in self.skipped]

    def state(self) -> dict[str, Any]:
        """As a checkpoint keeps it, in JSON."""
        return {
            "skipped_in_a_row": dict(self.in_a_row),
            "skipped": [list(pair) for pair in self.skipped],
            "losses": list(self._losses),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's."""
        self.in_a_row = dict(state.get("skipped_in_a_row", {}))
        self.skipped = [(first, last) for first, last in state.get("skipped", [])]
        self._losses = deque(state.get("losses", []), maxlen=REMEMBERED)


def robust_z(value: float, others: list[float]) -> float:
    """Deviation from the median of others in estimated standard deviations, by the median absolute deviation
    (Iglewicz and Hoaglin 1993); infinite where the others are all alike and this one isn't."""
    median = statistics.median(others)
    deviation = _MAD_TO_SIGMA * statistics.median(abs(other - median) for other in others)
    if deviation == 0:
        return 0.0 if value == median else math.copysign(math.inf, value - median)
    return (value - median) / deviation


def leave_out(run_dir: Path, first: int, last: int, why: str) -> None:
    """Note that a run is to go on past these global samples, from the checkpoint they follow."""
    windows = [*_left_out(run_dir), {"first": first, "last": last, "why": why}]
    write_atomic(run_dir / LEFT_OUT_NAME, json.dumps(windows, indent=1))


def windows_from(run_dir: Path, sample: int) -> tuple[tuple[int, int], ...]:
    """(first, last) of the windows left out that follow a position, one after the other."""
    ends = dict(noted_windows(run_dir))
    found = []
    while sample in ends:
        found.append((sample, ends[sample]))
        sample = ends[sample] + 1
    return tuple(found)


def noted_windows(run_dir: Path) -> list[tuple[int, int]]:
    """(first, last) of all windows that the run was ever told to go on past."""
    return [(window["first"], window["last"]) for window in _left_out(run_dir)]


def _left_out(run_dir: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(run_dir / LEFT_OUT_NAME, missing=[])
    return found
