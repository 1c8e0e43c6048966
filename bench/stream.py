"""Rows/s of the data stream over those of a torch DataLoader with one worker, on the same row groups.

    make bench        or        .venv/bin/python bench/stream.py [--rounds 5]

Both sides read, verify and shuffle the same 64-row groups of 1,025 tokens and return batches of the
same rows as numpy arrays; the sides take turns, and the result is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["PYTHONPATH"] = str(ROOT / "platform")

from data.prepared_factory import write_prepared
from raymill.data.store.manifest import PreparedData, load_prepared
from raymill.data.store.blocks import SourceShape
from raymill.data.store.order import Order
from raymill.data.store.reader import RowReader
from raymill.data.store.stream import RankStream, StreamSpec

LENGTH, GROUP, WINDOW, BATCH, ROWS = 1024, 64, 16, 32, 32_768
STREAM_ROWS = 8 * ROWS  # so many that rows read ahead at the start don't matter


class Windows(torch.utils.data.IterableDataset[Any]):
    """Dataset of an ordinary DataLoader: read a window of row groups, shuffle, cut into batches."""

    def __init__(self, folder: Path, order: Order, rows: int) -> None:
        self.folder, self.order, self.rows = folder, order, rows

    def __iter__(self) -> Iterator[Any]:
        reader = RowReader((self.folder,))
        for start in range(0, self.rows, WINDOW * GROUP):
            located = self.order.locate(start, min(WINDOW * GROUP, self.rows - start))
            columns = reader.read(located).columns()
            for first in range(0, len(columns["length"]), BATCH):
                part = slice(first, first + BATCH)
                yield {name: torch.from_numpy(values[part]) for name, values in columns.items()}


def loader_rows_per_s(folder: Path, order: Order) -> float:
    loader = torch.utils.data.DataLoader(
        Windows(folder, order, ROWS), batch_size=None, num_workers=1, prefetch_factor=4
    )
    batches = iter(loader)
    # The start of the worker isn't measured.
    next(batches)
    started, rows = time.perf_counter(), 0
    for batch in batches:
        rows += len(batch["length"])
    return rows / (time.perf_counter() - started)


def stream_rows_per_s(spec: StreamSpec) -> float:
    batches = iter(RankStream(spec, 0))
    # The start of the pipeline isn't measured.
    for _ in range(spec.steps // 4):
        next(batches)
    started, rows = time.perf_counter(), 0
    for batch in batches:
        rows += len(batch.rows)
    return rows / (time.perf_counter() - started)


def order_of(prepared: PreparedData) -> Order:
    shards = tuple(prepared.manifest.splits["train"].shards.column("rows").tolist())
    return Order([SourceShape("bench", 1.0, GROUP, shards)], 1, WINDOW, BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    import ray

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prepared(
            folder, sequence_length=LENGTH, row_group_rows=GROUP,
            shard_rows=(8192,) * 4, vocab_size=50_000,
        )  # fmt: skip
        order = order_of(load_prepared(folder))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        spec = StreamSpec((folder,), order, 1, 0, STREAM_ROWS)
        loader_rows_per_s(folder, order), stream_rows_per_s(spec)
        ratios, memory = [], []
        for _ in range(rounds):
            reference = loader_rows_per_s(folder, order)
            rate = stream_rows_per_s(spec)
            ratios.append(rate / reference)
            memory.append(psutil.Process().memory_info().rss / 2**20)
            print(f"  stream {rate:,.0f} rows/s, DataLoader {reference:,.0f} rows/s", flush=True)
        ray.shutdown()
    print(
        f"stream over DataLoader (1 worker): {statistics.median(ratios):.2f} "
        f"({np.min(ratios):.2f} to {np.max(ratios):.2f}); this process's memory "
        f"{memory[0]:.0f} MiB after the first round, {memory[-1]:.0f} after the last"
    )


if __name__ == "__main__":
    main()
