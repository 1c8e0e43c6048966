"""The order is a permutation per epoch, seekable, stable across versions, and cheap."""

from __future__ import annotations

import pickle
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.data.store.order import (
    PATTERN,
    Order,
    RowLocations,
    SourceShape,
    feistel,
    hash_key,
    inverse_feistel,
    pattern_slots,
    random_permutation,
)
from raymill.errors import DataError

shapes = st.builds(
    lambda size, rows: SourceShape("s", 1.0, size, tuple(rows)),
    st.integers(1, 7),
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
)
seeds = st.integers(0, 2**63)


def stack(located: RowLocations) -> np.ndarray:
    return np.stack(
        [located.source, located.epoch, located.shard, located.row_group, located.row], axis=1
    )


@given(st.integers(1, 3000), seeds)
@settings(max_examples=60, deadline=None)
def test_feistel_is_a_bijection_and_inverts(size: int, seed: int) -> None:
    key = hash_key(seed)
    image = feistel(np.arange(size), size, key)
    assert np.array_equal(np.sort(image), np.arange(size))
    assert np.array_equal(inverse_feistel(image, size, key), np.arange(size))


@given(shapes, seeds, st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_every_row_once_an_epoch(shape: SourceShape, seed: int, window: int) -> None:
    rows = sum(shape.shard_rows)
    order = Order([shape], seed, window)
    expected = {
        (shard, row // shape.row_group_rows, row % shape.row_group_rows)
        for shard, count in enumerate(shape.shard_rows)
        for row in range(count)
    }
    for epoch in (0, 3):
        found = stack(order.locate(epoch * rows, rows))
        assert set(found[:, 1]) == {epoch}
        assert {tuple(map(int, place[2:])) for place in found} == expected
        assert len(found) == len(expected)


@given(st.lists(shapes, min_size=1, max_size=3), seeds, st.integers(0, 5000), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_any_start_gives_the_same_order(
    sources: list[SourceShape], seed: int, start: int, count: int
) -> None:
    weighted = [
        SourceShape(str(i), 1.0 + i, s.row_group_rows, s.shard_rows) for i, s in enumerate(sources)
    ]
    order = Order(weighted, seed, 3)
    whole = stack(order.locate(0, start + count))
    assert np.array_equal(stack(order.locate(start, count)), whole[start:])


@given(st.lists(st.floats(0.05, 10), min_size=2, max_size=4), seeds)
@settings(max_examples=30, deadline=None)
def test_mixture_is_exact_to_one_slot_a_cycle_and_epochs_are_per_source(
    weights: list[float], seed: int
) -> None:
    sources = [SourceShape(str(i), w, 4, (50 * (i + 1),)) for i, w in enumerate(weights)]
    located = Order(sources, seed, 2).locate(0, 3 * PATTERN)
    for index, weight in enumerate(weights):
        mine = located.source == index
        share = weight / sum(weights) * PATTERN
        for cycle in range(3):
            assert abs(int(mine[cycle * PATTERN : (cycle + 1) * PATTERN].sum()) - share) <= 1
        rows = 50 * (index + 1)
        assert np.array_equal(located.epoch[mine], np.arange(int(mine.sum())) // rows)


def test_slots() -> None:
    assert pattern_slots([1, 1]) == [512, 512]
    assert sum(pattern_slots([0.3, 0.3, 0.3, 0.1])) == PATTERN
    with pytest.raises(DataError, match="never be drawn"):
        Order([SourceShape("a", 1, 4, (8,)), SourceShape("b", 1e-6, 4, (8,))], 0, 2)
    with pytest.raises(DataError, match="has no rows"):
        Order([SourceShape("a", 1, 4, ())], 0, 2)


def test_the_order_never_changes_between_versions() -> None:
    sources = [SourceShape("a", 3.0, 4, (10, 7, 16)), SourceShape("b", 1.0, 8, (30,))]
    assert stack(Order(sources, 1234, 2).locate(1020, 8)).tolist() == GOLDEN
    assert random_permutation(8, hash_key(1, 2)).tolist() == GOLDEN_SHUFFLE


GOLDEN = [
    [0, 23, 2, 2, 0],
    [1, 8, 0, 2, 1],
    [1, 8, 0, 3, 0],
    [0, 23, 2, 0, 2],
    [0, 23, 2, 1, 1],
    [1, 8, 0, 0, 7],
    [0, 23, 2, 1, 2],
    [0, 23, 2, 0, 0],
]
GOLDEN_SHUFFLE = [5, 0, 3, 2, 6, 7, 1, 4]


def test_neighbours_part_and_epochs_differ() -> None:
    shape = SourceShape("a", 1.0, 16, (4096,))
    order = Order([shape], 5, 8)
    first, second = order.locate(0, 4096), order.locate(4096, 4096)
    flat = first.row_group * 16 + first.row
    assert np.mean(np.abs(np.diff(flat)) == 1) < 0.02
    assert np.mean(flat == second.row_group * 16 + second.row) < 0.02
    windows = [set(first.row_group[i : i + 128]) for i in range(0, 4096, 128)]
    assert all(len(groups) == 8 for groups in windows), "a window reads just its own row groups"


def test_cost_does_not_depend_on_rows_or_position() -> None:
    small = SourceShape("a", 1.0, 64, (6_400,) * 10)
    huge = SourceShape("a", 1.0, 64, (6_400_000,) * 10_000)
    seconds = []
    for shape, start in ((small, 0), (huge, 0), (huge, 10**10), (huge, 6 * 10**10)):
        order = Order([shape], 1, 16)
        order.locate(0, 1)
        tracemalloc.start()
        began = time.thread_time()
        order.locate(start, 4096)
        seconds.append(time.thread_time() - began)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()
    assert max(seconds) < 1.0


def test_it_travels() -> None:
    order = Order([SourceShape("a", 1.0, 4, (10, 7))], 9, 2)
    before = stack(order.locate(0, 50))
    again = pickle.loads(pickle.dumps(order))
    assert np.array_equal(stack(again.locate(0, 50)), before)
