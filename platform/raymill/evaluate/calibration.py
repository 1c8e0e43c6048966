"""Calibration: whether what a model is 80% sure of is so in 80% of the cases. Pure.

Expected calibration error over equal bins of confidence (Guo et al. 2017, arXiv:1706.04599). A pair is
predicted by whichever answer the model prefers, so confidences lie between 1/2 and 1.
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
    """Sums by confidence: weights, weighted confidences, weighted successes, [3, BINS]; they add up."""

    totals: Floats = field(default_factory=_zeros)

    @classmethod
    def of(cls, chance: Floats, weight: Floats) -> Bins:
        """From probabilities given to what proved right, [P], and what each counts, [P]."""
        confidence = np.maximum(chance, 1 - chance)
        right = np.where(chance == 0.5, 0.5, chance > 0.5)
        place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
        values = (weight, weight * confidence, weight * right)
        return cls(np.stack([np.bincount(place, value, BINS) for value in values]))

    @classmethod
    def of_sums(cls, sums: Sequence[float]) -> Bins:
        """From what `sums` gave, added up over ranks."""
        return cls(np.array(sums, dtype=np.float64).reshape(3, BINS))

    def sums(self) -> list[float]:
        """As plain numbers."""
        found: list[float] = self.totals.reshape(-1).tolist()
        return found

    def __add__(self, other: Bins) -> Bins:
        return Bins(self.totals + other.totals)

    @property
    def error(self) -> float:
        """Mean of |confidence - accuracy| over bins, by their weight; 0 where there is nothing."""
        weight, confidence, right = self.totals
        total = float(weight.sum())
        return float(np.abs(confidence - right).sum()) / total if total else 0.0
