"""Tokenized shards on disk: Parquet files whose bytes are verified at every read.

Three checks, because a flipped byte in a Parquet file otherwise reads as valid data: page checksums
(written and verified); a digest of each row group's contents, kept in the footer, because page
checksums don't cover page headers; and the footer's own sha256, kept in the manifest. None of them
needs to read the whole shard.

Legend: T sequence length, R rows of a row group.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymill.causes import first_line
from raymill.data.store.extension_types import refuse_extension_types
from raymill.data.store.manifest import AGAIN, Shard, check_shard_size
from raymill.data.store.pack import RowGroup
from raymill.data.store.rows import ROW_COLUMNS, TOKEN_COLUMNS, AnyArray, Rows
from raymill.durable import fsync_path, sha256_file
from raymill.errors import DataError
from raymill.reading import MISSING, opened, retried

READ_BYTES = 1 << 20
# Footer metadata: DIGEST_HEX characters for each row group.
DIGESTS_KEY = b"raymill.row_group_digests"
LENGTH_KEY = b"raymill.sequence_length"
DIGEST_HEX = 16
# Memory for the parsed footers that a process keeps, and how much larger than in the file they are.
FOOTERS_BYTES = 64 * 2**20
PARSED_SIZE = 14


@dataclass(frozen=True)
class Footer:
    """Contents of a shard's verified footer."""

    parquet: pq.FileMetaData
    digests: str
    sequence_length: int

    @property
    def memory(self) -> int:
        """Approximate size in memory."""
        return int(self.parquet.serialized_size) * PARSED_SIZE


_footers: OrderedDict[tuple[str, str], Footer] = OrderedDict()
_footers_lock = threading.Lock()


def schema(dtype: str, kind: str) -> pa.Schema:
    """Return the only schema that a shard of this kind may have: no extension types, no nulls."""

    def by_token(of: str) -> pa.DataType:
        return pa.list_(pa.field("element", pa.from_numpy_dtype(np.dtype(of)), nullable=False))

    columns = {"tokens": dtype, **TOKEN_COLUMNS[kind]}
    return pa.schema(
        [
            *(pa.field(name, by_token(of), nullable=False) for name, of in columns.items()),
            *(
                pa.field(name, pa.from_numpy_dtype(np.dtype(of)), nullable=False)
                for name, of in _by_row(kind).items()
            ),
        ]
    )


def _by_row(kind: str) -> dict[str, str]:
    return {"bytes": "int32", **ROW_COLUMNS[kind]}


class ShardWriter:
    """Writer of one shard, row group by row group, under a temporary name that `finish` makes
    final.

    Leaving the `with` block without `finish` removes the temporary file.
    """

    def __init__(
        self, folder: Path, path: str, *, dtype: str, sequence_length: int, kind: str = "text"
    ) -> None:
        self._folder = folder
        self._path = path
        self._length = sequence_length
        self._schema = schema(dtype, kind)
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex}")
        # The high bytes of ids are nearly constant: split into byte planes they compress to 1.4
        # bytes per token at vocabulary 4096, where plain pages need 1.8, and decode faster.
        self._writer = pq.ParquetWriter(
            self._temporary,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding={
                **dict.fromkeys(_by_row(kind), "PLAIN"),
                "tokens.list.element": "BYTE_STREAM_SPLIT",
                **{f"{name}.list.element": "PLAIN" for name in TOKEN_COLUMNS[kind]},
            },
            write_statistics=False,
            write_page_checksum=True,
            store_schema=False,
        )
        self._digests: list[str] = []
        self._rows = self._predicted = self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer.is_open:
            self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, group: RowGroup) -> None:
        """Append one row group."""
        offsets = np.zeros(len(group.length) + 1, dtype=np.int32)
        np.cumsum(group.length, out=offsets[1:])
        lists = [
            pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(values), type=self._schema.field(name).type
            )
            for name, values in {"tokens": group.tokens, **group.by_token}.items()
        ]
        rows = [pa.array(values) for values in (group.bytes, *group.by_row.values())]
        batch = pa.record_batch([*lists, *rows], schema=self._schema)
        self._writer.write_batch(batch, row_group_size=len(group.length))
        self._digests.append(_group_digest(group))
        self._rows += len(group.length)
        self._predicted += int(group.length.sum()) - len(group.length)
        self._bytes += int(group.bytes.sum())

    def finish(self) -> Shard:
        """Close, fsync and rename the file; return the shard's entry for the manifest."""
        self._writer.add_key_value_metadata(
            {DIGESTS_KEY: "".join(self._digests), LENGTH_KEY: str(self._length)}
        )
        self._writer.close()
        target = self._folder / self._path
        # The data must be on the disk before the rename makes it visible.
        with self._temporary.open("rb+") as file:
            os.fsync(file.fileno())
        shard = Shard(
            path=self._path,
            rows=self._rows,
            row_groups=len(self._digests),
            tokens=self._predicted + 1,
            predicted_tokens=self._predicted,
            bytes=self._bytes,
            file_bytes=self._temporary.stat().st_size,
            sha256=sha256_file(self._temporary),
            footer_sha256=hashlib.sha256(read_footer(self._temporary)).hexdigest(),
        )
        self._temporary.replace(target)
        fsync_path(target.parent)
        return shard


def read_row_group(path: Path, shard: Shard, group: int, dtype: str, kind: str = "text") -> Rows:
    """Read and verify one row group; its tokens are of `dtype`.

    Raises:
        DataError: the contents don't match; names the file, the row group and the mismatch.
        StorageError: the file can't be read, which says nothing about its contents.
    """
    if not 0 <= group < shard.row_groups:
        raise DataError(
            f"{path} has row groups 0 to {shard.row_groups - 1}, but {group} was requested."
        )
    try:
        footer = _footer(path, shard, dtype, kind)
        table = retried(path, partial(_read_table, path, footer, group), parses=True)
        stored = _to_numpy(table, dtype, kind)
    except MISSING:
        raise DataError(
            f"{path} is missing; restore it, or delete manifest.json and {AGAIN}."
        ) from None
    # `retried` turns failures of the storage into StorageError; an OSError that is left comes from
    # Arrow and is about bytes that were read.
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise DataError(_damaged(path, group, first_line(error))) from error
    expected = footer.digests[group * DIGEST_HEX : (group + 1) * DIGEST_HEX]
    actual = _group_digest(stored)
    if actual != expected:
        raise DataError(
            _damaged(path, group, f"its contents have digest {actual}, expected {expected}")
        )
    width = footer.sequence_length + 1
    by_token = {
        name: _padded(values, stored.length, width)
        for name, values in {"tokens": stored.tokens, **stored.by_token}.items()
    }
    return Rows(length=stored.length, bytes=stored.bytes, **by_token, **stored.by_row)


def _read_table(path: Path, footer: Footer, group: int) -> pa.Table:
    with pq.ParquetFile(path, metadata=footer.parquet, page_checksum_verification=True) as file:
        return file.read_row_group(group, use_threads=False)


def row_groups(path: Path, shard: Shard, dtype: str, kind: str = "text") -> Iterator[Rows]:
    """Yield all row groups of a shard in file order."""
    for group in range(shard.row_groups):
        yield read_row_group(path, shard, group, dtype, kind)


def read_footer(path: Path) -> bytes:
    """Read the raw footer of a Parquet file, with length and magic.

    Raises:
        DataError: the file has no footer.
        StorageError: it can't be read.
    """
    with opened(path) as file:
        return footer_of(path, file)


def footer_of(path: Path, file: BinaryIO) -> bytes:
    """Return the raw footer of an open file; raises as `read_footer` does."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length + 12 > size:
        raise DataError(f"{path} isn't a Parquet file: its last bytes are {tail!r}.")
    file.seek(size - 8 - length)
    return file.read()


def parsed_footer(path: Path, footer: bytes) -> pq.FileMetaData:
    """Parse a raw footer after checking that it names no extension type.

    Raises:
        DataError: it names an extension type.
        OSError, pa.ArrowException: it isn't a footer.
    """
    refuse_extension_types(path, footer)
    return pq.read_metadata(pa.BufferReader(footer))


def _footer(path: Path, shard: Shard, dtype: str, kind: str) -> Footer:
    """Return the parsed footer, verified the first time that a process opens the shard."""
    key = (str(path), shard.footer_sha256)
    with _footers_lock:
        if key in _footers:
            _footers.move_to_end(key)
            return _footers[key]
    # A shard that is gone or was cut short is named as such, before its bytes are judged.
    check_shard_size(path, shard)
    raw = read_footer(path)
    actual = hashlib.sha256(raw).hexdigest()
    if actual != shard.footer_sha256:
        raise DataError(
            f"{path}: its footer has sha256 {actual[:12]}, the manifest expects "
            f"{shard.footer_sha256[:12]}; the shard was damaged or replaced: restore it, or "
            f"delete manifest.json and {AGAIN}."
        )
    metadata = parsed_footer(path, raw)
    stored = metadata.schema.to_arrow_schema()
    expected = schema(dtype, kind)
    if not stored.equals(expected, check_metadata=False):
        raise DataError(
            f"{path} has the schema ({_describe(stored)}), expected ({_describe(expected)}); it "
            f"isn't a shard of this manifest: restore it, or delete manifest.json and {AGAIN}."
        )
    entries = metadata.metadata or {}
    footer = Footer(metadata, entries[DIGESTS_KEY].decode("ascii"), int(entries[LENGTH_KEY]))
    digests = footer.digests
    if metadata.num_row_groups != shard.row_groups or len(digests) != shard.row_groups * DIGEST_HEX:
        raise DataError(
            f"{path} has {metadata.num_row_groups} row groups and {len(digests) // DIGEST_HEX} "
            f"row group digests, expected {shard.row_groups} of each; restore it, or delete "
            f"manifest.json and {AGAIN}."
        )
    with _footers_lock:
        _footers[key] = footer
        # Least recently used footers are dropped first.
        while sum(kept.memory for kept in _footers.values()) > FOOTERS_BYTES and len(_footers) > 1:
            _footers.popitem(last=False)
    return footer


def _to_numpy(table: pa.Table, dtype: str, kind: str) -> RowGroup:
    """Convert a table that holds one row group back to the form in which it was written."""
    lengths = []
    flat: dict[str, AnyArray] = {}
    for name, of in {"tokens": dtype, **TOKEN_COLUMNS[kind]}.items():
        column = table.column(name).combine_chunks()
        # A slice of a column keeps its whole buffer, so offsets may start above 0.
        offsets = column.offsets.to_numpy()
        flat[name] = column.values.to_numpy()[offsets[0] : offsets[-1]]
        lengths.append(np.diff(offsets).astype(np.int32))
        if column.null_count or flat[name].dtype != np.dtype(of):
            raise ValueError(f"expected {of} {name} without nulls")
        # All columns of a row must have a value for each of its tokens.
        if not np.array_equal(lengths[0], lengths[-1]):
            raise ValueError(f"a row has more {name} than tokens, or fewer")
    by_row = {name: table.column(name).to_numpy() for name in _by_row(kind)}
    for name, of in _by_row(kind).items():
        if by_row[name].dtype != np.dtype(of):
            raise ValueError(f"expected {of} {name} without nulls")
    return RowGroup(flat.pop("tokens"), lengths[0], by_row.pop("bytes"), flat, by_row)


def _padded(values: AnyArray, length: NDArray[np.int32], width: int) -> AnyArray:
    """Return [R, width] with 0 past a row's length; a view where all rows are full."""
    # Only the last row of a shard may be short, so most groups need no copy.
    if len(values) == width * len(length):
        return values.reshape(len(length), width)
    rows = np.zeros((len(length), width), dtype=values.dtype)
    rows[np.arange(width) < length[:, None]] = values
    return rows


def _group_digest(group: RowGroup) -> str:
    digest = hashlib.sha256()
    others = (*group.by_token.values(), *group.by_row.values())
    for array in (group.tokens, group.length, group.bytes, *others):
        # The digest must not depend on the machine's byte order.
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(little).data)
    return digest.hexdigest()[:DIGEST_HEX]


def _damaged(path: Path, group: int, reason: str) -> str:
    return (
        f"{path}, row group {group} is damaged ({reason}). The bytes on disk aren't those that "
        f"were written: restore the file, or delete manifest.json and {AGAIN}."
    )


def _describe(stored: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in stored)
