"""The held-out rows, in the order they lie in, shared out over the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raymill.data.manifest import load_prepared
from raymill.data.shards import Rows, read_row_group


class ValidationSet:
    """Rank r of n evaluates rows r, r + n, … of the first `rows` held-out rows.

    Every rank yields equally many batches, the last of them perhaps empty, because a forward pass may
    be collective. Memory is one row group and one batch.
    """

    def __init__(
        self, folder: Path, *, rank: int, world_size: int, batch_rows: int, rows: int | None = None
    ) -> None:
        self.prepared = load_prepared(folder)
        self.rank = rank
        self.world_size = world_size
        self.batch_rows = batch_rows
        available = self.prepared.manifest.splits["validation"].rows
        self.rows = available if rows is None else min(rows, available)

    def __len__(self) -> int:
        """Batches a rank yields."""
        most = -(-self.rows // self.world_size)
        return -(-most // self.batch_rows)

    def __iter__(self) -> Iterator[Rows]:
        """(tokens [B, T + 1], length [B], bytes [B]); B is batch_rows, less at the end, maybe 0.

        Raises:
            DataError: a held-out shard is missing or damaged.
        """
        held: list[Rows] = []
        yielded = 0
        for part in self._my_rows():
            held.append(part)
            while sum(len(rows[1]) for rows in held) >= self.batch_rows:
                tokens, length, size = _joined(held)
                cut = self.batch_rows
                yield tokens[:cut], length[:cut], size[:cut]
                yielded += 1
                held = [(tokens[cut:], length[cut:], size[cut:])]
        if any(len(rows[1]) for rows in held):
            yield _joined(held)
            yielded += 1
        width = self.prepared.manifest.sequence_length + 1
        for _ in range(len(self) - yielded):
            empty: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)
            yield np.empty((0, width), dtype=self.prepared.manifest.dtype), empty, empty

    def _my_rows(self) -> Iterator[Rows]:
        before = 0
        manifest = self.prepared.manifest
        for shard in manifest.splits["validation"].shards:
            path = self.prepared.shard_path(shard)
            for group in range(shard.row_groups):
                if before >= self.rows:
                    return
                tokens, length, size = read_row_group(path, shard, group, manifest.dtype)
                number = before + np.arange(len(length))
                mine = (number % self.world_size == self.rank) & (number < self.rows)
                before += len(length)
                if mine.any():
                    yield tokens[mine], length[mine], size[mine]


def _joined(parts: list[Rows]) -> Rows:
    tokens, length, size = zip(*parts, strict=True)
    return np.concatenate(tokens), np.concatenate(length), np.concatenate(size)
