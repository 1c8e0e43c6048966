"""Ranks that are slower than the others at what is theirs alone to do."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

# Phases in which a rank waits for no other, but for gathered weights under ZeRO-3; the rest ends when the
# slowest is done, on all ranks alike.
OWN = ("data", "forward")
STEPS = 50
FACTOR = 1.5


class Stragglers:
    """Adds up the ranks' seconds, and compares them after each `STEPS` steps."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._totals: list[dict[str, float]] = []

    def add(self, step: int, seconds: Sequence[Mapping[str, float]]) -> list[str]:
        """A step's seconds by phase, rank by rank; returns what is to be told of, if anything."""
        if self._first is None:
            self._first, self._totals = step, [dict.fromkeys(OWN, 0.0) for _ in seconds]
        for total, mine in zip(self._totals, seconds, strict=True):
            for phase in OWN:
                total[phase] += mine[phase]
        if step - self._first + 1 < STEPS:
            return []
        first, totals = self._first, self._totals
        self._first = None
        sums = [sum(total.values()) for total in totals]
        median = statistics.median_low(sums)
        return [
            f"rank {rank} was {own / median:.1f} times as slow as the median rank in steps {first} to {step}: "
            + ", ".join(f"{phase} {totals[rank][phase]:.2f} s" for phase in OWN)
            + f", median in all {median:.2f} s"
            for rank, own in enumerate(sums)
            if own > FACTOR * median
        ]
