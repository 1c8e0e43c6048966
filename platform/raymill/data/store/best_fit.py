"""Best-fit packing: documents are cut only where they are longer than a row (Ding et al. 2024).

"Fewer Truncations Improve Language Modeling", section 3: documents are cut into chunks of at most a row, and
these are packed by best-fit decreasing: the longest chunk first, each into the fullest row with space for it.
Legend: T sequence length; a row holds T + 1 tokens, the first of which isn't predicted.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

from raymill.data.store.hashing import Ints


def chunks(lengths: Ints, prefix: int, row: int) -> NDArray[np.int64]:
    """Return chunks [n, 3] (document, first token, cost) of documents of `lengths` tokens.

    A document costs its tokens, `prefix` before them and one that ends it; a chunk costs at most `row`.
    """
    cost = prefix + lengths + 1
    count = -(-cost // row)
    document = np.repeat(np.arange(len(lengths)), count)
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    begin = number * row
    size = np.minimum(cost[document] - begin, row)
    return np.stack([document, begin, size], axis=1)


def best_fit(sizes: Ints, capacity: int) -> list[list[int]]:
    """Return rows as lists of indices whose sizes add up to at most `capacity`.

    Best-fit decreasing; equal sizes in their order, so that the result is unique.

    Raises:
        ValueError: a size is above the capacity.
    """
    if len(sizes) and int(sizes.max()) > capacity:
        raise ValueError(f"a size of {int(sizes.max())} is above the capacity of {capacity}")
    rows: list[list[int]] = []
    # Space that is left → rows with so much; and all such spaces, ascending.
    by_space: dict[int, list[int]] = {}
    spaces: list[int] = []
    order = np.argsort(-sizes, kind="stable")
    for index, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        place = bisect_left(spaces, size)
        if place == len(spaces):
            rows.append([index])
            left, row = capacity - size, len(rows) - 1
        else:
            space = spaces[place]
            row = by_space[space].pop()
            if not by_space[space]:
                del spaces[place], by_space[space]
            rows[row].append(index)
            left = space - size
        if left:
            if left not in by_space:
                by_space[left] = []
                insort(spaces, left)
            by_space[left].append(row)
    return rows
