"""Which conversations share a row: first-fit decreasing over a bounded window (Johnson 1973).

Conversations are never cut: each lies whole in one row. Pure functions of the lengths and a key, so the
same data makes the same rows, and a row is what the order of samples counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raymill.data.order import Ints, shuffled


def pack(
    lengths: NDArray[np.integer], capacity: int, window: int, key: np.uint64, together: bool = True
) -> list[list[int]]:
    """Rows as lists of conversation numbers.

    Conversations are shuffled, cut into windows, and packed within each; a window's rows are shuffled
    again, since packing puts those with the longest conversations first. Not `together`: one a row.
    """
    order = shuffled(len(lengths), key)
    rows: list[list[int]] = []
    for number, first in enumerate(range(0, len(order), window)):
        mine = order[first : first + window]
        found = first_fit_decreasing(lengths[mine], capacity) if together else _alone(len(mine))
        with np.errstate(over="ignore"):
            again = shuffled(len(found), key + np.uint64(number + 1))
        rows += [mine[found[place]].tolist() for place in again]
    return rows


def first_fit_decreasing(lengths: NDArray[np.integer], capacity: int) -> list[Ints]:
    """Bins of indices whose lengths add up to at most `capacity`.

    A tree over the bins keeps the largest room below each node, so that the first bin with enough is
    found in O(log n).

    Raises:
        ValueError: a length is above the capacity.
    """
    if len(lengths) and int(lengths.max()) > capacity:
        raise ValueError(f"a length of {int(lengths.max())} is above the capacity of {capacity}")
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    room = [capacity] * (2 * leaves)
    bins: list[list[int]] = []
    for index in np.argsort(-lengths.astype(np.int64), kind="stable").tolist():
        size = int(lengths[index])
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < size:
                node += 1
        if node - leaves == len(bins):
            bins.append([])
        bins[node - leaves].append(index)
        room[node] -= size
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [np.array(one, dtype=np.int64) for one in bins]


def efficiency(rows: int, tokens: int, capacity: int) -> float:
    """Share of the rows' places that hold a token."""
    return tokens / (rows * capacity) if rows else 0.0


def _alone(count: int) -> Sequence[Ints]:
    return np.arange(count, dtype=np.int64).reshape(-1, 1)  # type: ignore[return-value]
