"""Rows of a source as blocks: its full row groups, then what the shards' ends leave over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymill.data.store.hashing import Ints, feistel, inverse_feistel


@dataclass(frozen=True)
class SourceShape:
    """Shape of a source, as the order needs it: every row group but a shard's last is full.

    `max_epochs` bounds how often its rows are drawn; None: without end.
    """

    name: str
    weight: float
    row_group_rows: int
    shard_rows: Sequence[int] | Ints
    max_epochs: float | None = None

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return int(np.sum(self.shard_rows))


@dataclass(frozen=True)
class RowLocations:
    """Locations of global samples; arrays of equal length. `row` counts within the row group."""

    source: Ints
    epoch: Ints
    shard: Ints
    row_group: Ints
    row: Ints

    def take(self, index: Ints) -> RowLocations:
        """Return the locations at `index`."""
        return RowLocations(
            self.source[index],
            self.epoch[index],
            self.shard[index],
            self.row_group[index],
            self.row[index],
        )


class Blocks:
    """Blocks of one source.

    Full row groups are blocks; the shards' partial last groups are put end to end and cut into
    blocks too, so that at most one block, the last, is short.
    """

    def __init__(self, source: SourceShape) -> None:
        self.size = source.row_group_rows
        rows = np.array(source.shard_rows, dtype=np.int64)
        self.rows = source.rows
        # Full groups, and left-over rows, before each shard.
        self.full_before = np.concatenate([[0], np.cumsum(rows // self.size)])
        self.tail_before = np.concatenate([[0], np.cumsum(rows % self.size)])
        self.full = int(self.full_before[-1])
        self.count = -(-self.rows // self.size)
        # Number of rows that the one short block lacks.
        self.short = self.count * self.size - self.rows

    def permuted(self, line: Ints, key: np.uint64) -> tuple[Ints, Ints]:
        """Return (block, row in it) of the rows `line` of a random line-up of the blocks."""
        # Rows behind the short block move up by the number of rows that it lacks.
        last = self.count - 1
        where = int(inverse_feistel(np.array([last]), self.count, key)[0]) if self.short else last
        short_end = (where + 1) * self.size - self.short
        slot, row = np.divmod(line + np.where(line >= short_end, self.short, 0), self.size)
        return feistel(slot, self.count, key), row

    def to_shard(self, flat: Ints) -> tuple[Ints, Ints, Ints]:
        """Return (shard, row group, row) of rows counted block by block."""
        block, row = np.divmod(flat, self.size)
        full = block < self.full
        # Rows behind the full blocks are left-over rows of the shards, end to end.
        tail_row = flat - self.full * self.size
        shard = np.where(
            full,
            np.searchsorted(self.full_before, block, side="right") - 1,
            np.searchsorted(self.tail_before, tail_row, side="right") - 1,
        )
        # A left-over row lies in the group after the shard's full ones.
        full_groups = self.full_before[shard + 1] - self.full_before[shard]
        group = np.where(full, block - self.full_before[shard], full_groups)
        row = np.where(full, row, tail_row - self.tail_before[shard])
        return shard, group, row
