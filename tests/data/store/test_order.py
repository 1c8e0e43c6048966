"""The order is a permutation per epoch, seekable, shared out by rank, stable, and cheap."""

from __future__ import annotations

import pickle
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.data.store.blocks import RowLocations, SourceShape
from raymill.data.store.mixture import Change
from raymill.data.store.order import Order, SampleOrder, shares
from raymill.data.store.order_v1 import PATTERN, OrderV1, pattern_slots
from raymill.errors import DataError

shapes = st.builds(
    lambda size, rows: SourceShape("s", 1.0, size, tuple(rows)),
    st.integers(1, 7),
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
)
seeds = st.integers(0, 2**63)
versions = pytest.mark.parametrize("version", [OrderV1, Order])


def stack(located: RowLocations) -> np.ndarray:
    return np.stack(
        [located.source, located.epoch, located.shard, located.row_group, located.row], axis=1
    )


def rows_of(shape: SourceShape) -> set[tuple[int, int, int]]:
    return {
        (shard, row // shape.row_group_rows, row % shape.row_group_rows)
        for shard, count in enumerate(shape.shard_rows)
        for row in range(count)
    }


def weighted(sources: list[SourceShape]) -> list[SourceShape]:
    return [
        SourceShape(str(i), 1.0 + i, s.row_group_rows, s.shard_rows) for i, s in enumerate(sources)
    ]


@versions
@given(shapes, seeds, st.integers(1, 5), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_every_row_once_an_epoch(
    version: type, shape: SourceShape, seed: int, window: int, batch: int
) -> None:
    rows = sum(shape.shard_rows)
    order: SampleOrder = version([shape], seed, window, batch)
    for epoch in (0, 3):
        found = stack(order.locate(epoch * rows, rows))
        assert set(found[:, 1]) == {epoch}
        assert Counter(tuple(map(int, place[2:])) for place in found) == Counter(rows_of(shape))


@versions
@given(st.lists(shapes, min_size=1, max_size=3), seeds, st.integers(0, 5000), st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_any_start_gives_the_same_order(
    version: type, sources: list[SourceShape], seed: int, start: int, count: int
) -> None:
    order: SampleOrder = version(weighted(sources), seed, 3, 8)
    whole = stack(order.locate(0, start + count))
    assert np.array_equal(stack(order.locate(start, count)), whole[start:])


@given(st.lists(shapes, min_size=1, max_size=3), seeds, st.data())
@settings(max_examples=25, deadline=None)
def test_every_epoch_has_every_row_once_though_weights_change(
    sources: list[SourceShape], seed: int, data: st.DataObject
) -> None:
    weights = st.tuples(*[st.sampled_from([0.0, 0.2, 1.0, 7.0])] * len(sources)).filter(any)
    firsts = sorted(data.draw(st.sets(st.integers(1, 200), max_size=4)))
    changes = [Change(first, data.draw(weights)) for first in firsts]
    order = Order(weighted(sources), seed, 2, data.draw(st.integers(1, 24)), changes)
    found = stack(order.locate(0, 600))
    for index, shape in enumerate(sources):
        mine = found[found[:, 0] == index]
        rows = sum(shape.shard_rows)
        assert np.array_equal(mine[:, 1], np.arange(len(mine)) // rows), "epochs follow each other"
        for epoch in range(len(mine) // rows):
            epoch_rows = Counter(tuple(map(int, r)) for r in mine[mine[:, 1] == epoch][:, 2:])
            assert epoch_rows == Counter(rows_of(shape))
        counts = Counter(tuple(map(int, r)) for r in mine[:, 1:])
        assert set(counts.values()) <= {1}


def divisors(batch: int) -> list[int]:
    return [n for n in range(1, batch + 1) if batch % n == 0]


@versions
@given(st.lists(shapes, min_size=1, max_size=4), seeds, st.integers(1, 24), st.data())
@settings(max_examples=25, deadline=None)
def test_the_ranks_together_have_each_batch_once(
    version: type, sources: list[SourceShape], seed: int, batch: int, data: st.DataObject
) -> None:
    first, steps = data.draw(st.integers(0, 2000)), data.draw(st.integers(1, 5))
    order: SampleOrder = version(weighted(sources), seed, 3, batch)
    check_ranks(order, first, steps)


@given(st.lists(shapes, min_size=2, max_size=4), seeds, st.integers(1, 24), st.data())
@settings(max_examples=25, deadline=None)
def test_the_ranks_share_batches_of_several_phases(
    sources: list[SourceShape], seed: int, batch: int, data: st.DataObject
) -> None:
    sources = [
        SourceShape(s.name, s.weight, s.row_group_rows, s.shard_rows, 0.5 + i)
        for i, s in enumerate(weighted(sources))
    ]
    changes = [Change(3 * batch, tuple(float(i != 1) for i in range(len(sources))))]
    order = Order(sources, seed, 3, batch, changes)
    available = order.mixture.available
    assert available is not None, "all sources have an end"
    if available >= batch:
        first = data.draw(st.integers(0, available - batch))
        check_ranks(order, first, data.draw(st.integers(1, (available - first) // batch)))


def check_ranks(order: SampleOrder, first: int, steps: int) -> None:
    batch = order.global_batch
    everything = stack(order.locate(first, steps * batch))
    for world in divisors(batch):
        ids = []
        for rank in range(world):
            sample, located = order.rank_rows(first, steps, rank, world)
            assert np.array_equal(sample, np.sort(sample)), "ascending"
            assert np.array_equal(stack(located), everything[sample - first])
            per_step = np.bincount((sample - first) // batch, minlength=steps)
            assert per_step.tolist() == [batch // world] * steps
            ids += sample.tolist()
        assert sorted(ids) == list(range(first, first + steps * batch))


def test_a_rank_of_one_source_keeps_its_columns() -> None:
    order = Order([SourceShape("a", 1.0, 16, (16 * 640,))], 3, 4, 64)
    for rank in range(8):
        sample, located = order.rank_rows(0, 160, rank, 8)
        assert np.array_equal(
            sample.reshape(160, 8), np.arange(0, 160 * 64, 64)[:, None] + rank * 8 + np.arange(8)
        )
        # Each row group is read by this rank alone, and by it in whole.
        assert all(count == 16 for count in Counter(located.row_group.tolist()).values())


@pytest.mark.parametrize("weights", [(1.0,), (0.61, 0.3, 0.09)])
def test_every_batch_takes_one_row_of_each_row_group(weights: tuple[float, ...]) -> None:
    batch, size = 256, 16
    sources = [SourceShape(str(i), w, size, (70_000, 33_333)) for i, w in enumerate(weights)]
    order = Order(sources, 11, 16, batch)
    located = order.locate(0, 128 * batch)
    groups = np.stack([located.source, located.shard, located.row_group], axis=1)
    for step in range(128):
        distinct = np.unique(groups[step * batch : (step + 1) * batch], axis=0)
        # A source may have two rows more in a batch than columns.
        assert len(distinct) >= batch - 2 * (len(weights) - 1)
    # Each group is used in whole, but for those that are in use at the end.
    _, rows = np.unique(groups, axis=0, return_counts=True)
    assert (rows == size).sum() > 128 * batch / size - 2 * batch


def test_bad_sources_are_refused() -> None:
    with pytest.raises(DataError, match="never be drawn"):
        OrderV1([SourceShape("a", 1, 4, (8,)), SourceShape("b", 1e-6, 4, (8,))], 0, 2, 8)
    for version in (OrderV1, Order):
        with pytest.raises(DataError, match="has no rows"):
            version([SourceShape("a", 1, 4, ())], 0, 2, 8)
    with pytest.raises(DataError, match="b has no weight at any time"):
        Order([SourceShape("a", 1, 4, (8,)), SourceShape("b", 0, 4, (8,))], 0, 2, 8)


def test_places_are_dealt_by_largest_remainder() -> None:
    assert shares([1, 1], 8) == [4, 4]
    assert shares([3, 3, 3, 1], 8) == [3, 2, 2, 1]
    assert shares([2**31 - 1, 1], 8) == [8, 0]


def test_version_1_never_changes() -> None:
    """Values from the code before there was another version."""
    sources = [SourceShape("a", 3.0, 4, (10, 7, 16)), SourceShape("b", 1.0, 8, (30,))]
    assert stack(OrderV1(sources, 1234, 2, 8).locate(1020, 8)).tolist() == GOLDEN_1
    assert pattern_slots([1, 1]) == [512, 512]
    assert sum(pattern_slots([0.3, 0.3, 0.3, 0.1])) == PATTERN


GOLDEN_1 = [
    [0, 23, 2, 2, 0],
    [1, 8, 0, 2, 1],
    [1, 8, 0, 3, 0],
    [0, 23, 2, 0, 2],
    [0, 23, 2, 1, 1],
    [1, 8, 0, 0, 7],
    [0, 23, 2, 1, 2],
    [0, 23, 2, 0, 0],
]


def test_neighbors_part_and_epochs_differ() -> None:
    shape = SourceShape("a", 1.0, 16, (4096,))
    order = Order([shape], 5, 8, 32)
    first, second = order.locate(0, 4096), order.locate(4096, 4096)
    flat = first.row_group * 16 + first.row
    assert np.mean(np.abs(np.diff(flat)) == 1) < 0.02
    assert np.mean(flat == second.row_group * 16 + second.row) < 0.02


@pytest.mark.parametrize("weights", [(0.6, 0.3, 0.1), (5.0, 1.0, 0.37, 0.011)])
def test_a_batch_is_more_even_than_independent_draws(weights: tuple[float, ...]) -> None:
    """Sources vary by a hundredth of what binomial draws vary, and neighbors are apart."""
    batch, batches = 512, 40
    sources = [SourceShape(str(i), w, 16, (200_000,)) for i, w in enumerate(weights)]
    located = Order(sources, 2, 16, batch).locate(0, batch * batches)
    shares_ = np.array(weights) / sum(weights)
    drawn = located.source.reshape(batches, batch)
    for index, share in enumerate(shares_):
        counts = (drawn == index).sum(axis=1)
        assert counts.var() < 0.05 * batch * share * (1 - share) + 0.3
    # In windows of 16 row groups, a batch has 512 / 16 rows of each of them.
    before = OrderV1(sources[:1], 2, 16, batch).locate(0, batch)
    now = Order(sources[:1], 2, 16, batch).locate(0, batch)
    assert len(np.unique(before.row_group)) <= 64
    assert len(np.unique(now.row_group)) == batch


def test_a_rank_computes_its_own_rows_only() -> None:
    """Seconds of 4 rows per rank, in a batch of a thousand times as many."""
    seconds = {}
    for ranks in (8, 8192):
        sources = [SourceShape(str(i), 1 + i, 64, (6_400_000,) * 100) for i in range(8)]
        order = Order(sources, 1, 16, 4 * ranks)
        order.rank_rows(0, 16, 1, ranks)
        began = time.thread_time()
        order.rank_rows(4 * 10**7 * ranks // 64, 16, ranks // 2, ranks)
        seconds[ranks] = time.thread_time() - began
    assert seconds[8192] < 4 * seconds[8] + 0.02


def test_cost_does_not_depend_on_rows_or_position() -> None:
    small = SourceShape("a", 1.0, 64, (6_400,) * 10)
    huge = SourceShape("a", 1.0, 64, (6_400_000,) * 10_000)
    seconds = []
    for shape, start in ((small, 0), (huge, 0), (huge, 10**10), (huge, 6 * 10**10)):
        order = Order([shape], 1, 16, 4096)
        order.locate(0, 1)
        tracemalloc.start()
        began = time.thread_time()
        order.locate(start, 4096)
        seconds.append(time.thread_time() - began)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()
    assert max(seconds) < 1.0


def test_it_travels() -> None:
    order = Order([SourceShape("a", 1.0, 4, (10, 7))], 9, 2, 4)
    before = stack(order.locate(0, 50))
    again = pickle.loads(pickle.dumps(order))
    assert np.array_equal(stack(again.locate(0, 50)), before)
