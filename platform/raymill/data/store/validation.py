"""Rows of a split in storage order, divided among the ranks; used for held-out rows above all.

Each rank takes neighboring rows, so that it reads the row groups of its own share and no others: all ranks
together read each row group once, and those at the borders of shares twice or more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raymill.data.store.manifest import load_prepared
from raymill.data.store.rows import Rows
from raymill.data.store.shards import read_row_group
from raymill.data.store.split import VALIDATION


class ValidationSet:
    """Evaluation rows of a rank: the r-th of n equal parts of the first `rows` rows of a split.

    `source` is the folder's number among several, and makes record numbers distinct. Every rank
    yields equally many batches, the last perhaps empty, because a forward pass may be collective.
    Memory is one row group and one batch.
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
        # This rank's rows are numbers `first` to `stop` of the split's.
        self.first, self.stop = (self.rows * part // world_size for part in (rank, rank + 1))

    def __len__(self) -> int:
        """Return the number of batches per rank."""
        rank_rows = -(-self.rows // self.world_size)
        return -(-rank_rows // self.batch_rows)

    def __iter__(self) -> Iterator[Rows]:
        """Yield batches of batch_rows rows; the last ones may be shorter, or empty.

        Raises:
            DataError: a shard is missing or damaged.
        """
        pending: list[Rows] = []
        yielded = 0
        for part in self._rank_rows():
            pending.append(part)
            while sum(map(len, pending)) >= self.batch_rows:
                rows = Rows.concatenated(pending)
                yield rows.part(0, self.batch_rows)
                yielded += 1
                pending = [rows.part(self.batch_rows, len(rows))]
        if any(map(len, pending)):
            yield Rows.concatenated(pending)
            yielded += 1
        manifest = self.prepared.manifest
        # Empty batches keep the number equal on all ranks.
        for _ in range(len(self) - yielded):
            yield Rows.empty(manifest.sequence_length + 1, manifest.dtype, manifest.kind)

    def _rank_rows(self) -> Iterator[Rows]:
        before = 0
        manifest = self.prepared.manifest
        size = manifest.row_group_rows
        for shard in manifest.splits[self.split].shards:
            if before >= self.stop:
                return
            # All row groups of a shard are full, except for the last one.
            first, stop = max(0, self.first - before), min(shard.rows, self.stop - before)
            for group in range(first // size, -(-stop // size) if stop > first else 0):
                path = self.prepared.shard_path(shard)
                rows = read_row_group(path, shard, group, manifest.dtype, manifest.kind)
                rows = rows.with_source(self.source)
                start = group * size
                yield rows.part(max(0, first - start), min(len(rows), stop - start))
            before += shard.rows
