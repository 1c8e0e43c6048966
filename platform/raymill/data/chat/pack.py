"""Pack conversations into rows: by decreasing length within a bounded window, one row filled after another.

Conversations are never cut: each is whole in one row. Packing is a pure function of the lengths and a key, so
the same data always makes the same rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raymill.data.store.hashing import Ints, random_permutation


def pack(
    lengths: NDArray[np.integer], capacity: int, window: int, key: np.uint64, together: bool = True
) -> list[list[int]]:
    """Return rows as lists of conversation numbers; unless packed `together`, one conversation per row.

    Conversations are shuffled, cut into windows, and packed within each window. A window's rows are shuffled
    again, since packing puts those with the longest conversations first.
    """
    order = random_permutation(len(lengths), key)
    rows: list[list[int]] = []
    for number, first in enumerate(range(0, len(order), window)):
        members = order[first : first + window]
        if together:
            packed = fill_rows(lengths[members], capacity)
        else:
            packed = [[index] for index in range(len(members))]
        # The key is a hash: its sum with the window's number may wrap around.
        with np.errstate(over="ignore"):
            shuffled_rows = random_permutation(len(packed), key + np.uint64(number + 1))
        rows += [members[packed[row]].tolist() for row in shuffled_rows]
    return rows


def fill_rows(lengths: NDArray[np.integer], capacity: int) -> list[list[int]]:
    """Return rows of indices whose lengths add up to at most `capacity`.

    Each row begins with the longest conversation left. Then, as long as any fits, it gets the longer
    one of the pair that fills the remaining space best. First-fit decreasing (Johnson 1973) leaves 3.4% of the
    embedded conversations' rows of 256 empty, this 1.6%; on other distributions it was never worse.

    Raises:
        ValueError: a length is above the capacity.
    """
    if len(lengths) and int(lengths.max()) > capacity:
        raise ValueError(f"a length of {int(lengths.max())} is above the capacity of {capacity}")
    # Length → conversations of it, in reverse, since they are taken from the end.
    waiting: dict[int, list[int]] = {}
    # Conversations of one length are interchangeable, so it's enough to choose among lengths.
    for index in range(len(lengths) - 1, -1, -1):
        waiting.setdefault(int(lengths[index]), []).append(index)
    sizes = np.array(sorted(waiting), dtype=np.int64)
    rows: list[list[int]] = []
    while len(sizes):
        row: list[int] = []
        space, size = capacity, int(sizes[-1])
        while size:
            row.append(waiting[size].pop())
            space -= size
            if not waiting[size]:
                sizes = sizes[sizes != size]
            size = _best_next(sizes[: np.searchsorted(sizes, space, side="right")], space)
        rows.append(row)
    return rows


def _best_next(fitting: Ints, space: int) -> int:
    """Return the longer size of the pair, or the single size, that leaves the least space; 0 if none fits."""
    if not len(fitting):
        return 0
    # For each size, the largest second size that still fits with it (index -1: none).
    other = np.searchsorted(fitting, space - fitting, side="right") - 1
    filled = fitting + np.where(other >= 0, fitting[np.maximum(other, 0)], 0)
    # Of equally good sizes the largest is taken first: small ones fill later gaps more easily.
    return int(fitting[len(fitting) - 1 - np.argmax(filled[::-1])])


def efficiency(rows: int, tokens: int, capacity: int) -> float:
    """Return the share of the rows' capacity that holds a token."""
    return tokens / (rows * capacity) if rows else 0.0
