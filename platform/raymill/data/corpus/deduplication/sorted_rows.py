"""Files of fixed-size rows in sorted runs, of which a task reads one range of keys.

Half of an external sort that survives kills: each task writes one file, complete or not at all, and the
tasks of the next stage read their range from all of them. A file holds its runs one after the other; then,
for each run, the row number at which each partition begins (uint64, one more than partitions); then two
uint64, the numbers of runs and partitions. Partition p has the rows whose first field is at least
`bounds[p]` and less than `bounds[p + 1]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from raymill.data.corpus.stages import UnitFiles
from raymill.data.corpus.store import StoredFile
from raymill.data.store.hashing import Words
from raymill.errors import DataError

Rows = NDArray[np.void]

# Document ids are unit · 2³² + row, so ids are ordered by the priority of their sources.
ROW_BITS = np.uint64(32)
_ROW_MASK = np.uint64(2**32 - 1)
_NUMBER = np.dtype("<u8")
_FOOTER_BYTES = 2 * _NUMBER.itemsize
# Bytes that a reader holds at once, and the least that a writer collects before it sorts.
PIECE_BYTES = 1 << 22


def document_ids(unit: int, rows: NDArray[np.integer]) -> Words:
    """Return the ids of a unit's rows."""
    return (np.uint64(unit) << ROW_BITS) | rows.astype(np.uint64)


def rows_of(ids: Words) -> Words:
    """Return the row numbers of document ids inside their units."""
    return ids & _ROW_MASK


def units_of(ids: Words) -> Words:
    """Return the unit numbers of document ids."""
    return ids >> ROW_BITS


def unit_bounds(units: int) -> Words:
    """Return the smallest document id of each unit, for a partition a unit."""
    return np.arange(units, dtype=np.uint64) << ROW_BITS


def sorted_unique(rows: Rows, fields: Sequence[str]) -> Rows:
    """Return the rows sorted by some fields, one for each distinct value of them."""
    if not len(rows):
        return rows
    columns = [np.ascontiguousarray(rows[field]) for field in fields]
    order = np.lexsort(columns[::-1])
    different = np.zeros(len(rows), dtype=np.bool_)
    different[0] = True
    for column in columns:
        ordered = column[order]
        different[1:] |= ordered[1:] != ordered[:-1]
    return rows[order[different]]


class SortedRows:
    """Writer of one file; holds the rows of a run in memory."""

    def __init__(
        self,
        stream: BinaryIO,
        bounds: Words,
        run_bytes: int,
        compact: Callable[[Rows], Rows],
    ) -> None:
        self._stream, self._bounds, self._compact = stream, bounds, compact
        self._run_bytes = max(run_bytes, PIECE_BYTES)
        self._waiting: list[Rows] = []
        self._waiting_bytes = 0
        self._index: list[Words] = []
        self.rows = 0

    def add(self, rows: Rows) -> None:
        """Add rows in any order."""
        self._waiting.append(rows)
        self._waiting_bytes += rows.nbytes
        if self._waiting_bytes >= self._run_bytes:
            self._write_run()

    def finish(self) -> None:
        """Write the last run and the index."""
        self._write_run()
        for starts in self._index:
            self._stream.write(starts.tobytes())
        footer = np.array([len(self._index), len(self._bounds)], dtype="<u8")
        self._stream.write(footer.tobytes())

    def _write_run(self) -> None:
        if not self._waiting_bytes:
            return
        run = self._compact(np.concatenate(self._waiting))
        self._waiting, self._waiting_bytes = [], 0
        assert run.dtype.names, "rows have fields"
        first = np.ascontiguousarray(run[run.dtype.names[0]])
        starts = np.append(np.searchsorted(first, self._bounds), len(run)).astype("<u8")
        self._index.append(starts + np.uint64(self.rows))
        self._stream.write(run.tobytes())
        self.rows += len(run)


@contextmanager
def sorted_rows(
    path: Path, *, bounds: Words, run_bytes: int, compact: Callable[[Rows], Rows]
) -> Iterator[SortedRows]:
    """Write a file, which is complete when the block ends.

    `compact` sorts a run by its first field and may remove rows from it.
    """
    with path.open("wb") as stream:
        writer = SortedRows(stream, bounds, run_bytes, compact)
        yield writer
        writer.finish()


def read_partitions(
    files: UnitFiles, file: StoredFile, dtype: np.dtype[np.void], first: int, end: int
) -> Iterator[Rows]:
    """Yield the rows of partitions [first, end), in pieces of which each is sorted.

    Raises:
        DataError: the file is missing or cut short.
        StorageError: it can't be read.
    """

    def read(offset: int, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
        buffer = bytearray(count * kind.itemsize)
        if offset < 0 or files.read_range(file, offset, memoryview(buffer)) != len(buffer):
            raise DataError(f"{file.path} is cut short; delete it and prepare the corpus again.")
        return np.frombuffer(buffer, dtype=kind)

    footer = read(file.bytes - _FOOTER_BYTES, 2, _NUMBER)
    runs, partitions = int(footer[0]), int(footer[1])
    index = file.bytes - _FOOTER_BYTES - runs * (partitions + 1) * _NUMBER.itemsize
    piece_rows = max(1, PIECE_BYTES // dtype.itemsize)
    for run in range(runs):
        place = index + (run * (partitions + 1) + first) * _NUMBER.itemsize
        starts = read(place, end - first + 1, _NUMBER)
        low, high = int(starts[0]), int(starts[-1])
        for row in range(low, high, piece_rows):
            yield read(row * dtype.itemsize, min(piece_rows, high - row), dtype)
