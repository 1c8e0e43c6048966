"""Memory of the tasks that group and connect, on inputs of four times what they may take."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data.documents_factory import CONFIG
from raymill.data.corpus.deduplication.components import (
    WORKING_BYTES,
    Contraction,
    contract,
    smallest_connected,
    unit_ranges,
    write_edges,
)
from raymill.data.corpus.deduplication.group import (
    WORKING_BYTES as KEY_BYTES,
)
from raymill.data.corpus.deduplication.group import group_range, key_ranges, range_name
from raymill.data.corpus.deduplication.settings import (
    EDGE,
    KEY_ROW,
    DeduplicationSettings,
    slice_bounds,
)
from raymill.data.corpus.deduplication.sorted_rows import (
    document_ids,
    read_partitions,
    sorted_rows,
    sorted_unique,
)
from raymill.data.corpus.documents import DocumentsFile
from raymill.data.corpus.stages import UnitFiles
from raymill.data.corpus.store import CorpusStore

MEMORY = 1 << 25

Result = TypeVar("Result")


def settings_of(units: int, rows: int) -> DeduplicationSettings:
    """Settings for units of so many documents, of which there are no files."""
    documents = tuple(
        DocumentsFile(f"documents/{unit}.parquet", rows, 0, 0, "", "web", 0)
        for unit in range(units)
    )
    return DeduplicationSettings(replace(CONFIG, memory_bytes=MEMORY), documents)


def within(limit: int, work: Callable[..., Result], *arguments: Any) -> Result:
    """Return the result of a call, which must not allocate more than a limit."""
    tracemalloc.start()
    try:
        result = work(*arguments)
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < limit
        return result
    finally:
        tracemalloc.stop()


def test_grouping_takes_the_memory_it_is_given(tmp_path: Path) -> None:
    store = CorpusStore(str(tmp_path), None)
    settings, chance = settings_of(4, 1 << 16), np.random.default_rng(1)
    stored = []
    rows_each = MEMORY // KEY_BYTES
    for unit in range(4):
        rows = np.empty(rows_each, dtype=KEY_ROW)
        # Each key occurs about four times.
        rows["key"] = chance.integers(0, rows_each, rows_each).astype(np.uint64) << np.uint64(46)
        rows["row"] = chance.integers(0, 1 << 16, rows_each)
        files = UnitFiles(store)
        with sorted_rows(
            files.new(f"keys/{unit}.bin"),
            bounds=slice_bounds(),
            run_bytes=1 << 30,
            compact=lambda rows: sorted_unique(rows, ("key", "row")),
        ) as writer:
            writer.add(rows)
        stored += files.commit()
    settings = settings.with_files("keys", stored)
    ranges = key_ranges(4 * rows_each, MEMORY)
    assert len(ranges) == 4
    for item in ranges:
        files = UnitFiles(store)
        within(2 * MEMORY, group_range, item, settings, files)
        assert files.commit()[0].path.endswith(f"{range_name(item)}.bin")


def test_contraction_equals_scipy_in_bounded_memory(tmp_path: Path) -> None:
    units, rows = 4, 1 << 15
    store = CorpusStore(str(tmp_path), None)
    settings, chance = settings_of(units, rows), np.random.default_rng(2)
    edges = 4 * MEMORY // WORKING_BYTES
    every = np.concatenate([document_ids(unit, np.arange(rows)) for unit in range(units)])
    # Long chains through all units, and one star of thousands.
    low = chance.permutation(every)[:edges]
    high = np.concatenate([low[1:], low[:1]])
    broken = chance.random(len(low)) < 0.9
    low, high = low[broken], high[broken]
    low[:5000] = every[7]
    low, high = np.minimum(low, high), np.maximum(low, high)
    files = UnitFiles(store)
    with write_edges(files.new("edges/0.bin"), settings) as writer:
        writer.connect(low[low != high], high[low != high])
    settings = settings.with_files("edges", files.commit())
    read, unchanged, step = "edges", 0, 0
    while unchanged < 2:
        changed, written = 0, []
        for first, end in unit_ranges([rows] * units, rows * 32):
            item = Contraction(f"step{step}", "small" if step % 2 else "large", first, end, read)
            files = UnitFiles(store)
            changed += within(MEMORY, contract, item, settings, files)["changed"]
            written += files.commit()
        read = f"step{step}"
        settings = settings.with_files(read, written)
        unchanged = 0 if changed else unchanged + 1
        step += 1
        assert step < 30, "contraction doesn't end"
    files = UnitFiles(store)
    pieces = [
        rows
        for file in settings.stored[read]
        for rows in read_partitions(files, file, EDGE, 0, units)
    ]
    stars = np.concatenate(pieces)
    once = np.unique(stars[stars["node"] > stars["other"]])
    ids, smallest = smallest_connected(low, high)
    away = ids != smallest
    assert once["node"].tolist() == ids[away].tolist()
    assert once["other"].tolist() == smallest[away].tolist()
