"""Lineage: for every shard, the documents that each of its rows holds, in a Parquet file of its own.

It is read only when a row is traced; the manifest vouches for it. An entry tells that the tokens [first,
last) of a row are those of a document from its token number `token` on, and where that document was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymill.data.store.hashing import Ints
from raymill.data.store.tables import TableFile
from raymill.durable import atomic_replacement, sha256_file
from raymill.errors import DataError
from raymill.reading import is_file

LINEAGE_FOLDER = "lineage"
# Documents whose entries are written together.
GROUP_DOCUMENTS = 1 << 15

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("first", pa.int32(), nullable=False),
        pa.field("last", pa.int32(), nullable=False),
        pa.field("token", pa.int64(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Place of a document in the inputs.

    `offset` and `length` are bytes of the file as it is stored, of its decompressed contents, or rows of a
    table; `sha256` is the digest of what is there.
    """

    file: str
    offset: int
    length: int
    sha256: bytes


@dataclass(frozen=True)
class Traced:
    """Part of a row: its tokens [first, last) are a document's, from its token number `token` on."""

    first: int
    last: int
    token: int
    origin: Origin


def lineage_path(shard_path: str) -> str:
    """Return the path of a shard's lineage within the folder."""
    return f"{LINEAGE_FOLDER}/{shard_path}"


class LineageWriter:
    """Writer of one shard's lineage; `finish` puts it in place."""

    def __init__(self, folder: Path, shard_path: str, sequence_length: int) -> None:
        self._folder, self._path = folder, lineage_path(shard_path)
        self._length = sequence_length
        self._spans: list[tuple[int, int]] = []
        self._origins: list[Origin] = []
        self._groups: list[pa.Table] = []

    def add(self, origin: Origin, start: int, stop: int) -> None:
        """Add a document whose tokens are [start, stop) of the shard's stream; see `pack.Packer`."""
        self._spans.append((start, stop))
        self._origins.append(origin)
        if len(self._spans) >= GROUP_DOCUMENTS:
            self._flush()

    def add_parts(self, parts: Ints, origins: list[Origin]) -> None:
        """Add parts [n, 5] (row, first, last, token, number of the document in `origins`), by row."""
        self._append(parts[:, 0], parts[:, 1], parts[:, 2], parts[:, 3], parts[:, 4], origins)

    def finish(self) -> TableFile:
        """Write the file durably, and return what vouches for it."""
        self._flush()
        target = self._folder / self._path
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = 0
        with atomic_replacement(target) as temporary:
            with pq.ParquetWriter(
                temporary,
                SCHEMA,
                compression="zstd",
                use_dictionary=["file", "sha256"],
                write_statistics=["row"],
                store_schema=False,
            ) as writer:
                for table in self._groups:
                    writer.write_table(table)
                    rows += table.num_rows
            size, sha256 = temporary.stat().st_size, sha256_file(temporary)
        return TableFile(self._path, rows, size, sha256)

    def _flush(self) -> None:
        if not self._spans:
            return
        start, stop = np.array(self._spans, dtype=np.int64).T
        length = self._length
        # Row r holds the stream's tokens from r · length on, one more than its length; the first is also the
        # last of the row before.
        first_row, last_row = (start - 1) // length, (stop - 1) // length
        count = last_row - first_row + 1
        document = np.repeat(np.arange(len(start)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count - first_row, count)
        begin = row * length
        first = np.maximum(start[document] - begin, 0)
        last = np.minimum(stop[document] - begin, length + 1)
        token = begin + first - start[document]
        self._append(row, first, last, token, document, self._origins)
        self._spans, self._origins = [], []

    def _append(
        self, row: Ints, first: Ints, last: Ints, token: Ints, document: Ints, origins: list[Origin]
    ) -> None:
        by_document = pa.table(
            {
                "file": pa.array([origin.file for origin in origins], pa.string()),
                "offset": pa.array([origin.offset for origin in origins], pa.int64()),
                "length": pa.array([origin.length for origin in origins], pa.int64()),
                "sha256": pa.array([origin.sha256 for origin in origins], pa.binary()),
            }
        ).take(pa.array(document))
        by_part = (row, first.astype(np.int32), last.astype(np.int32), token)
        columns = [*map(pa.array, by_part), *by_document.columns]
        self._groups.append(pa.Table.from_arrays(columns, schema=SCHEMA))


def read_lineage(folder: Path, file: TableFile, row: int) -> list[Traced]:
    """Return the parts of a shard's row, in its order; the sidecar is verified.

    Raises:
        DataError: the sidecar is missing or damaged.
        StorageError: it can't be read.
    """
    path = folder / file.path
    if not is_file(path):
        raise DataError(f"{path} is missing: rows can't be traced without it; restore it.")
    actual = sha256_file(path)
    if actual != file.sha256:
        raise DataError(
            f"{path}: expected sha256 {file.sha256[:12]}, found {actual[:12]}; restore it."
        )
    found = pq.read_table(path, filters=[("row", "==", row)]).sort_by("first").to_pylist()
    return [
        Traced(
            entry["first"],
            entry["last"],
            entry["token"],
            Origin(entry["file"], entry["offset"], entry["length"], entry["sha256"]),
        )
        for entry in found
    ]
