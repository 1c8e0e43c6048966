"""Which conversations share a row: decreasing lengths over a bounded window, each row filled in turn.

Conversations are never cut: each lies whole in one row. Pure functions of the lengths and a key, so the
same data makes the same rows, and a row is what the order of samples counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raymill.data.store.order import Ints, random_permutation


def pack(
    lengths: NDArray[np.integer], capacity: int, window: int, key: np.uint64, together: bool = True
) -> list[list[int]]:
    """Rows as lists of conversation numbers.

    Conversations are shuffled, cut into windows, and packed within each; a window's rows are shuffled
    again, since packing puts those with the longest conversations first. Not `together`: one a row.
    """
    order = random_permutation(len(lengths), key)
    rows: list[list[int]] = []
    for number, first in enumerate(range(0, len(order), window)):
        mine = order[first : first + window]
        found = fill_rows(lengths[mine], capacity) if together else [[i] for i in range(len(mine))]
        with np.errstate(over="ignore"):
            again = random_permutation(len(found), key + np.uint64(number + 1))
        rows += [mine[found[place]].tolist() for place in again]
    return rows


def fill_rows(lengths: NDArray[np.integer], capacity: int) -> list[list[int]]:
    """Rows of indices whose lengths add up to at most `capacity`.

    Each row begins with the longest conversation that is left; then, as long as any fits, comes the longer
    one of the pair that fills the rest best. First-fit decreasing (Johnson 1973) leaves 3.4% of the
    embedded conversations' rows of 256 empty, this 1.6%; on other distributions it was never worse.

    Raises:
        ValueError: a length is above the capacity.
    """
    if len(lengths) and int(lengths.max()) > capacity:
        raise ValueError(f"a length of {int(lengths.max())} is above the capacity of {capacity}")
    waiting: dict[int, list[int]] = {}  # length → conversations, the first of them last
    for index in range(len(lengths) - 1, -1, -1):
        waiting.setdefault(int(lengths[index]), []).append(index)
    sizes = np.array(sorted(waiting), dtype=np.int64)
    rows: list[list[int]] = []
    while len(sizes):
        row: list[int] = []
        room, size = capacity, int(sizes[-1])
        while size:
            row.append(waiting[size].pop())
            room -= size
            if not waiting[size]:
                sizes = sizes[sizes != size]
            size = _best_next(sizes[: np.searchsorted(sizes, room, side="right")], room)
        rows.append(row)
    return rows


def _best_next(fitting: Ints, room: int) -> int:
    """The longer size of the pair, or the single one, that leaves the least room; 0 if none fits."""
    if not len(fitting):
        return 0
    other = np.searchsorted(fitting, room - fitting, side="right") - 1
    filled = fitting + np.where(other >= 0, fitting[np.maximum(other, 0)], 0)
    return int(fitting[len(fitting) - 1 - np.argmax(filled[::-1])])


def efficiency(rows: int, tokens: int, capacity: int) -> float:
    """Share of the rows' places that hold a token."""
    return tokens / (rows * capacity) if rows else 0.0
