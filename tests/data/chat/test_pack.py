"""Packing: whole conversations, every one once, full rows, and the same each time."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.data.chat.pack import efficiency, first_fit_decreasing, pack
from raymill.data.order import hash_key


def naive(lengths: list[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing as it is defined."""
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for one in bins:
            if sum(lengths[i] for i in one) + lengths[index] <= capacity:
                one.append(index)
                break
        else:
            bins.append([index])
    return bins


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(2, 64), max_size=80), st.integers(64, 130))
def test_the_tree_finds_the_first_bin(lengths: list[int], capacity: int) -> None:
    found = first_fit_decreasing(np.array(lengths, dtype=np.int64), capacity)
    assert [one.tolist() for one in found] == naive(lengths, capacity)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 64), min_size=1, max_size=300), st.integers(1, 100))
def test_every_conversation_is_in_one_row(lengths: list[int], window: int) -> None:
    array = np.array(lengths)
    rows = pack(array, 64, window, hash_key(5))
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(array[row].sum() <= 64 for row in rows)
    assert rows == pack(array, 64, window, hash_key(5))
    alone = pack(array, 64, window, hash_key(5), together=False)
    assert sorted(alone) == [[index] for index in range(len(lengths))]


def test_rows_are_full_and_mixed() -> None:
    lengths = np.random.default_rng(0).integers(20, 120, 20_000)
    rows = pack(lengths, 257, 4096, hash_key(1))
    assert efficiency(len(rows), int(lengths.sum()), 257) > 0.99
    longest = np.array([lengths[row].max() for row in rows])
    # First-fit decreasing puts long ones first; the rows' order doesn't tell.
    assert abs(np.corrcoef(longest, np.arange(len(rows)))[0, 1]) < 0.05
    assert pack(lengths, 257, 4096, hash_key(2)) != rows
