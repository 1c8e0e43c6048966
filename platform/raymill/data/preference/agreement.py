"""How far people agree on which answer is better, beyond chance: Krippendorff's alpha for nominal values.

K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section D. Legend: N judgements, U units
(here pairs of answers), C different values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def nominal_alpha(unit: NDArray[Any], value: NDArray[Any]) -> float | None:
    """1 − observed/expected disagreement of values [N] given to units [N], by any number of judges.

    A unit's m values give coincidences o_ck = Σ_u n_uc (n_uk − [c = k]) / (m_u − 1); with n_c = Σ_k o_ck and
    n = Σ_c n_c, alpha = 1 − (n − 1) Σ_{c≠k} o_ck / Σ_{c≠k} n_c n_k. Units with one value count for nothing.

    Returns None where it isn't defined: no unit has two values, or all values are the same.
    """
    _, unit_N = np.unique(unit, return_inverse=True)
    _, value_N = np.unique(value, return_inverse=True)
    if not len(unit_N):
        return None
    counts_UC = np.zeros((unit_N.max() + 1, value_N.max() + 1))
    np.add.at(counts_UC, (unit_N, value_N), 1)
    counts_UC = counts_UC[counts_UC.sum(axis=1) >= 2]
    shares_UC = counts_UC / (counts_UC.sum(axis=1, keepdims=True) - 1)
    coincidences_CC = counts_UC.T @ shares_UC - np.diag(shares_UC.sum(axis=0))
    n_C = coincidences_CC.sum(axis=1)
    n = n_C.sum()
    expected = n**2 - (n_C**2).sum()
    if expected <= 0:
        return None
    observed = n - np.trace(coincidences_CC)
    return float(1 - (n - 1) * observed / expected)
