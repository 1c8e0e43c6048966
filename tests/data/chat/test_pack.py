"""Packing: whole conversations, every one once, full rows, and the same each time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.data.chat.pack import efficiency, fill_rows, pack
from raymill.data.store.hashing import hash_key


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
def test_rows_hold_what_fits_and_nothing_more_would(lengths: list[int], capacity: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    rows = fill_rows(array, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for number, row in enumerate(rows):
        room = capacity - int(array[row].sum())
        assert room >= 0
        later = [index for other in rows[number + 1 :] for index in other]
        assert all(lengths[index] > room for index in later), "what comes later would have fitted"


@pytest.mark.parametrize("name", ["narrow", "wide", "uniform", "short"])
def test_no_more_rows_than_first_fit_decreasing(name: str) -> None:
    random = np.random.default_rng(0)
    lengths = {
        "narrow": random.normal(54, 8, 2000).clip(20, 120).astype(np.int64),
        "wide": random.lognormal(4, 1, 2000).clip(5, 257).astype(np.int64),
        "uniform": random.integers(20, 120, 2000),
        "short": random.integers(2, 12, 2000),
    }[name]
    assert len(fill_rows(lengths, 257)) <= len(naive(lengths.tolist(), 257))


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
