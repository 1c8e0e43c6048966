"""The reader reads each row group once, within bounds, for any order, rank and start."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.prepared_factory import write_prepared
from data.store.test_stream import order_of
from raymill.data.store import reader as reader_module
from raymill.data.store.manifest import PreparedData
from raymill.data.store.order import SampleOrder
from raymill.data.store.order_v1 import OrderV1
from raymill.data.store.reader import RowReader
from raymill.data.store.rows import Rows
from raymill.data.store.shards import read_row_group

BATCH = 12


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_prepared(tmp_path_factory.mktemp("data"), shard_rows=(370, 220, 90, 41))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """Count of the reads of each row group."""
    counted: Counter[tuple[str, int]] = Counter()

    def counting(path: Path, shard: object, group: int, *more: str) -> Rows:
        counted[str(path), group] += 1
        return read_row_group(path, shard, group, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(reader_module, "read_row_group", counting)
    return counted


def share(
    order: SampleOrder, reader: RowReader, rank: int, world: int, steps: range, unit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sample ids and tokens of a rank's steps, read a few steps at a time."""
    parts = []
    for step in range(steps.start, steps.stop, unit):
        count = min(unit, steps.stop - step)
        sample, located = order.rank_rows(step * BATCH, count, rank, world)
        parts.append((sample, reader.read(located).tokens))
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([rows for _, rows in parts])


@pytest.mark.parametrize("world", [1, 3, 12])
@pytest.mark.parametrize("unit", [1, 5])
def test_each_row_group_is_read_once(
    prepared: PreparedData, reads: Counter[tuple[str, int]], world: int, unit: int
) -> None:
    order = order_of(prepared)
    for rank in range(world):
        reads.clear()
        ids, _ = share(order, RowReader((prepared.folder,)), rank, world, range(60), unit)
        assert len(ids) == 60 * BATCH // world
        # A rank's columns begin and end inside of row groups; partial groups of shards are short.
        columns = max(BATCH, order.window_row_groups) // world
        groups = len(ids) / prepared.manifest.row_group_rows
        assert sum(reads.values()) <= groups + 2 * columns + 4
        assert max(reads.values()) <= 2


@pytest.mark.parametrize("version", [1, 2])
def test_ranks_that_come_and_go_read_the_order_exactly(
    prepared: PreparedData, version: int
) -> None:
    """Any number of ranks, at odd steps, by readers that were used for something else before."""
    order: SampleOrder = order_of(prepared)
    if version == 1:
        order = OrderV1(order.sources, 3, 2, BATCH)
    readers = [RowReader((prepared.folder,)) for _ in range(12)]
    seen: dict[int, bytes] = {}
    for world, steps in ((4, range(7)), (3, range(7, 12)), (12, range(12, 13)), (1, range(13, 31))):
        for rank in range(world):
            ids, tokens = share(order, readers[rank], rank, world, steps, 3)
            seen |= {int(i): row.tobytes() for i, row in zip(ids, tokens, strict=True)}
    expected = RowReader((prepared.folder,)).read(order.locate(0, 31 * BATCH)).tokens
    assert [seen[i] for i in range(31 * BATCH)] == [row.tobytes() for row in expected]


def test_a_resumed_rank_reads_its_open_row_groups_again_and_no_more(
    prepared: PreparedData, reads: Counter[tuple[str, int]]
) -> None:
    order = order_of(prepared)
    share(order, RowReader((prepared.folder,)), 1, 3, range(20), 5)
    before = Counter(reads)
    share(order, RowReader((prepared.folder,)), 1, 3, range(17, 20), 5)
    again = sum((reads - before).values())
    assert again <= 2 * BATCH // 3


def test_memory_is_bounded_and_the_rows_are_right(prepared: PreparedData) -> None:
    order = order_of(prepared)
    one = read_row_group(
        prepared.shard_path(prepared.manifest.splits["train"].shards[0]),
        prepared.manifest.splits["train"].shards[0], 0, "uint16",
    )  # fmt: skip
    bounded = RowReader((prepared.folder,), open_bytes=3 * one.memory)
    free = RowReader((prepared.folder,))
    for step in range(0, 20, 2):
        _, located = order.rank_rows(step * BATCH, 2, 0, 1)
        np.testing.assert_array_equal(bounded.read(located).tokens, free.read(located).tokens)
        assert sum(rows.memory for rows, _ in bounded._open.values()) <= 3 * one.memory
        assert len(free._open) > 3, "more of them are in use"
        assert free._bytes == sum(rows.memory for rows, _ in free._open.values())


def test_a_mixture_reads_little_more(tmp_path: Path, reads: Counter[tuple[str, int]]) -> None:
    sources = [
        write_prepared(tmp_path / str(seed), shard_rows=(400,), seed=seed) for seed in range(3)
    ]
    order = order_of(*sources, weights=(0.5, 0.3, 0.2))
    ids, _ = share(order, RowReader([p.folder for p in sources]), 1, 3, range(80), 4)
    groups = len(ids) / sources[0].manifest.row_group_rows
    # The columns of three sources, at both ends, and a share of the rows that change their rank.
    assert sum(reads.values()) <= 1.35 * groups
