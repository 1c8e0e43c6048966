"""Ranks that are slower than the others in work that is their own."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from raymill.engine.group import WorkerGroup

# The other phases end on all ranks when the slowest rank is done, so their times say nothing about a rank.
# Under ZeRO-3 the forward pass gathers weights, and shows a straggler less clearly.
PHASES = ("data", "forward")
STEPS = 50
FACTOR = 1.5


class Stragglers:
    """Sums of this rank's seconds by phase, which the ranks compare every `STEPS` steps."""

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group
        self._first: int | None = None
        self._seconds = np.zeros(len(PHASES))

    def add(self, step: int, seconds: Mapping[str, float]) -> list[str]:
        """Add a step's seconds by phase; after `STEPS` steps, return messages about slow ranks. Collective."""
        if self._first is None:
            self._first, self._seconds = step, np.zeros(len(PHASES))
        self._seconds += [seconds[phase] for phase in PHASES]
        if step - self._first + 1 < STEPS:
            return []
        first, self._first = self._first, None
        return messages(self._group.stack(self._seconds.tolist()), first, step)


def messages(seconds_NP: npt.NDArray[np.float64], first: int, last: int) -> list[str]:
    """Return a message for every rank that took more than `FACTOR` times as long as the median rank.

    `seconds_NP` are those of each rank by phase, in steps `first` to `last`.
    """
    sums = seconds_NP.sum(axis=1).tolist()
    # The lower median, so that of two ranks the slower one can be named.
    median = statistics.median_low(sums)
    return [
        f"rank {rank} was {rank_sum / median:.1f} times as slow as the median rank in steps {first} to {last}: "
        + ", ".join(
            f"{phase} {seconds:.2f} s"
            for phase, seconds in zip(PHASES, seconds_NP[rank], strict=True)
        )
        + f", median in all {median:.2f} s"
        for rank, rank_sum in enumerate(sums)
        if rank_sum > FACTOR * median
    ]
