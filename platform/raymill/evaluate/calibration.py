"""Calibration of predicted preferences: predictions of 80% confidence should be right in 80% of cases. Pure.

Expected calibration error over equal bins of confidence (Guo et al. 2017, arXiv:1706.04599). The prediction
for a pair is the answer that the model prefers, so confidences lie between 1/2 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BINS = 10


def _zeros() -> Floats:
    return np.zeros((3, BINS))


@dataclass(frozen=True)
class Bins:
    """Sums per bin of confidence: weights, weighted confidences, weighted successes; [3, BINS]."""

    totals: Floats = field(default_factory=_zeros)

    @classmethod
    def from_probabilities(cls, probability: Floats, weight: Floats) -> Bins:
        """Bin pairs by the probability of the answer that proved right, [P], with their weights, [P]."""
        confidence = np.maximum(probability, 1 - probability)
        right = np.where(probability == 0.5, 0.5, probability > 0.5)
        index = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
        values = (weight, weight * confidence, weight * right)
        return cls(np.stack([np.bincount(index, value, BINS) for value in values]))

    @classmethod
    def from_sums(cls, sums: Sequence[float]) -> Bins:
        """Restore bins from the numbers of `sums`, added up over ranks."""
        return cls(np.array(sums, dtype=np.float64).reshape(3, BINS))

    def sums(self) -> list[float]:
        """Return the sums as plain numbers."""
        flat: list[float] = self.totals.reshape(-1).tolist()
        return flat

    def __add__(self, other: Bins) -> Bins:
        return Bins(self.totals + other.totals)

    @property
    def error(self) -> float:
        """Mean of |confidence - accuracy| over bins, weighted; 0 for empty bins."""
        weight, confidence, right = self.totals
        total = float(weight.sum())
        return float(np.abs(confidence - right).sum()) / total if total else 0.0
