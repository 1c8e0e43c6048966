"""Muon computed from its formulas, in float64, by singular values instead of matrix products."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def orthogonalized(matrix: Floats) -> Floats:
    """Apply the quintic to the singular values: each iteration maps s to 3.4445 s - 4.7750 s³ + 2.0315 s⁵."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / max(math.sqrt(float(np.sum(matrix**2))), 1e-7)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    result: Floats = left * values @ right
    return result


class MuonReference:
    """Update one matrix by equation 4 of Liu et al. 2025, with Nesterov's momentum as in Jordan et al."""

    def __init__(self, weight: Floats, momentum: float, decay: float) -> None:
        self.weight = weight.astype(np.float64)
        self.momentum = np.zeros_like(self.weight)
        self._mu, self._decay = momentum, decay

    def step(self, gradient: Floats, rate: float) -> None:
        mu = self._mu
        self.momentum = mu * self.momentum + (1 - mu) * gradient
        update = orthogonalized((1 - mu) * gradient + mu * self.momentum)
        scale = 0.2 * math.sqrt(max(self.weight.shape))
        self.weight = self.weight - rate * (scale * update + self._decay * self.weight)
