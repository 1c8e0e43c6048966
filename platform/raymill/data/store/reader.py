"""Reader of located rows that keeps the row groups in use, so that each is read once.

The order takes a row from each of many row groups in turn. A process that reads a rank's rows, a
few steps at a time, therefore holds its open row groups in memory; `OPEN_BYTES` bounds them. Where
they don't fit, each is read again for every few steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from raymill.data.store.blocks import RowLocations
from raymill.data.store.manifest import PreparedData, load_prepared
from raymill.data.store.rows import Rows
from raymill.data.store.shards import read_row_group

# Row groups that are read at once: storage answers each after a while, and decoding runs in parallel.
READERS = 4
# Bound of the open row groups of one rank.
OPEN_BYTES = 8 * 2**30

# A source's number, a shard's, a row group's.
Key = tuple[int, int, int]


@lru_cache(maxsize=16)
def opened_folder(folder: Path) -> PreparedData:
    """Return a prepared folder, which each process verifies once."""
    return load_prepared(folder)


class RowReader:
    """Reader of rows from prepared folders, one per source.

    Not for use by several threads. A row group is dropped when all of its rows were taken; beyond
    `open_bytes`, those that weren't used for longest are.
    """

    def __init__(self, folders: Sequence[Path], open_bytes: int = OPEN_BYTES) -> None:
        self._folders = tuple(folders)
        self.open_bytes = open_bytes
        self._open: OrderedDict[Key, tuple[Rows, int]] = OrderedDict()
        self._bytes = 0
        # Threads aren't started before there is something to read.
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="raymill-read")

    def read(self, located: RowLocations) -> Rows:
        """Return the rows at `located`, in that order.

        Raises:
            DataError: a row group is missing or damaged; names it and its file.
            StorageError: a file can't be read; names it.
        """
        manifest = opened_folder(self._folders[0]).manifest
        empty = Rows.empty(manifest.sequence_length + 1, manifest.dtype, manifest.kind)
        columns = {
            name: np.empty((len(located.row), *column.shape[1:]), dtype=column.dtype)
            for name, column in empty.columns().items()
        }
        keys = np.stack([located.source, located.shard, located.row_group], axis=1)
        groups, inverse = np.unique(keys, axis=0, return_inverse=True)
        by_group = np.argsort(inverse.reshape(-1), kind="stable")
        ends = np.cumsum(np.bincount(inverse.reshape(-1), minlength=len(groups)))
        requested: list[Key] = [(key[0], key[1], key[2]) for key in groups.tolist()]
        for number, (key, rows) in enumerate(self._groups(requested)):
            selected = by_group[ends[number - 1] if number else 0 : ends[number]]
            for name, column in rows.take(located.row[selected]).columns().items():
                columns[name][selected] = column
            self._keep(key, rows, len(selected))
        return Rows.from_columns(columns)

    def _groups(self, keys: Sequence[Key]) -> Iterator[tuple[Key, Rows]]:
        """Yield row groups, open ones and those that are read now."""
        found = [self._open.get(key) for key in keys]
        read = self._pool.map(
            self._read, [key for key, kept in zip(keys, found, strict=True) if kept is None]
        )
        for key, kept in zip(keys, found, strict=True):
            yield key, next(read) if kept is None else kept[0]

    def _read(self, key: Key) -> Rows:
        source, shard_index, group = key
        prepared = opened_folder(self._folders[source])
        manifest = prepared.manifest
        shard = manifest.splits["train"].shards[shard_index]
        path = prepared.shard_path(shard)
        rows = read_row_group(path, shard, group, manifest.dtype, manifest.kind)
        return rows.with_source(source)

    def _keep(self, key: Key, rows: Rows, taken: int) -> None:
        """Keep a row group for its other rows, of which `taken` more were taken."""
        kept = self._open.pop(key, None)
        if kept is None:
            self._bytes += rows.memory
        taken += kept[1] if kept else 0
        if taken < len(rows):
            self._open[key] = rows, taken
        else:
            self._bytes -= rows.memory
        while self._bytes > self.open_bytes:
            self._bytes -= self._open.popitem(last=False)[1][0].memory
