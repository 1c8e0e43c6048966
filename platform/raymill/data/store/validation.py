"""All rows of a split, in the order they lie in, shared out over the ranks: held-out rows above all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from raymill.data.store.manifest import load_prepared
from raymill.data.store.rows import Rows
from raymill.data.store.shards import read_row_group
from raymill.data.store.split import VALIDATION


class ValidationSet:
    """Rank r of n evaluates rows r, r + n, … of the first `rows` rows of a split.

    `source` is the folder's number among several: records are numbered apart by it.

    Every rank yields equally many batches, the last of them perhaps empty, because a forward pass may
    be collective. Memory is one row group and one batch.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        world_size: int,
        batch_rows: int,
        rows: int | None = None,
        split: str = VALIDATION,
        source: int = 0,
    ) -> None:
        self.prepared = load_prepared(folder)
        self.rank = rank
        self.world_size = world_size
        self.batch_rows = batch_rows
        self.split = split
        self.source = source
        available = self.prepared.manifest.splits[split].rows
        self.rows = available if rows is None else min(rows, available)

    def __len__(self) -> int:
        """Batches a rank yields."""
        most = -(-self.rows // self.world_size)
        return -(-most // self.batch_rows)

    def __iter__(self) -> Iterator[Rows]:
        """Batches of batch_rows rows, less at the end, maybe none.

        Raises:
            DataError: a shard is missing or damaged.
        """
        held: list[Rows] = []
        yielded = 0
        for part in self._my_rows():
            held.append(part)
            while sum(map(len, held)) >= self.batch_rows:
                rows = Rows.joined(held)
                yield rows.part(0, self.batch_rows)
                yielded += 1
                held = [rows.part(self.batch_rows, len(rows))]
        if any(map(len, held)):
            yield Rows.joined(held)
            yielded += 1
        manifest = self.prepared.manifest
        for _ in range(len(self) - yielded):
            yield Rows.empty(manifest.sequence_length + 1, manifest.dtype, manifest.kind)

    def _my_rows(self) -> Iterator[Rows]:
        before = 0
        manifest = self.prepared.manifest
        for shard in manifest.splits[self.split].shards:
            path = self.prepared.shard_path(shard)
            for group in range(shard.row_groups):
                if before >= self.rows:
                    return
                rows = read_row_group(path, shard, group, manifest.dtype, manifest.kind)
                rows = rows.of_source(self.source)
                number = before + np.arange(len(rows))
                mine = (number % self.world_size == self.rank) & (number < self.rows)
                before += len(rows)
                if mine.any():
                    yield rows.take(mine)
