"""Tables of records in Arrow files: as long as a corpus needs, opened without being read.

A table is named by the sha256 of its file, which another file vouches for. Where it is large, the
first process of a machine that opens it makes a verified copy in a private folder of that machine;
all its processes map that copy, so that they share its memory. A map of a file on shared storage
would end the process when the storage doesn't answer.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raymill.durable import atomic_replacement, sha256_file
from raymill.errors import DataError
from raymill.reading import MISSING, opened, read_bytes, retried

T = TypeVar("T")

# A file up to this size is read into the memory of each process.
SMALL_BYTES = 1 << 20
_BATCH = 1 << 14
_COPY_BYTES = 1 << 22
# A machine's copy that nobody opened for so long is removed.
_UNUSED_S = 30 * 86400


@dataclass(frozen=True)
class TableFile:
    """File of a table: its path within its folder, its records, bytes and digest."""

    path: str
    rows: int
    bytes: int
    sha256: str


class Table(Sequence[T], Generic[T]):
    """Sequence of records of one dataclass, whose fields are `str`, `int`, and digests in hex.

    A record is made when it is asked for; `load` is called at the first need of the contents.
    """

    def __init__(self, record: type[T], rows: int, load: Callable[[], pa.Table]) -> None:
        self._record = record
        self._rows = rows
        self._load = load

    @classmethod
    def of(cls, record: type[T], records: Iterable[T]) -> Table[T]:
        """Build a table in memory, of records that are consumed one after another."""
        layout, remaining = _schema(record), iter(records)
        batches = []
        while part := list(islice(remaining, _BATCH)):
            columns = [
                pa.array([_stored(field, getattr(item, field.name)) for item in part], field.type)
                for field in layout
            ]
            batches.append(pa.record_batch(columns, schema=layout))
        table = pa.Table.from_batches(batches, layout)
        return cls(record, table.num_rows, lambda: table)

    @classmethod
    def stored(cls, record: type[T], folder: Path, file: TableFile) -> Table[T]:
        """Return a table that `write` has written; it is verified when its contents are needed."""
        return cls(record, file.rows, lambda: _read(record, folder, file))

    def write(self, folder: Path, name: str) -> TableFile:
        """Write the table as a file, durably, and return what vouches for it."""
        path = folder / name
        with atomic_replacement(path) as temporary:
            with pa.ipc.new_file(temporary, self._arrow.schema) as file:
                # Batches of one size, so that equal contents have equal bytes.
                file.write_table(self._arrow.combine_chunks(), max_chunksize=_BATCH)
            size, sha256 = temporary.stat().st_size, sha256_file(temporary)
        return TableFile(name, self._rows, size, sha256)

    @cached_property
    def _arrow(self) -> pa.Table:
        return self._load()

    def verify(self) -> None:
        """Open and verify the contents now.

        Raises:
            DataError: the file is missing, damaged, or something else.
            StorageError: it can't be read.
        """
        _ = self._arrow

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """[records] Return a column of integers."""
        values: npt.NDArray[np.int64] = self._arrow.column(name).to_numpy()
        return values

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._rows))]
        number = index + self._rows if index < 0 else index
        if not 0 <= number < self._rows:
            raise IndexError(f"record {index} of a table of {self._rows}")
        return next(self._records(self._arrow.slice(number, 1)))

    def __iter__(self) -> Iterator[T]:
        for batch in self._arrow.to_batches(max_chunksize=_BATCH):
            yield from self._records(batch)

    def _records(self, part: pa.Table | pa.RecordBatch) -> Iterator[T]:
        for values in part.to_pylist():
            yield self._record(
                **{k: v.hex() if isinstance(v, bytes) else v for k, v in values.items()}
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and bool(self._arrow.equals(other._arrow))

    # Like a list's, since a table is compared by its contents.
    __hash__ = None  # type: ignore[assignment]


def _schema(record: type) -> pa.Schema:
    return pa.schema(
        [pa.field(field.name, _arrow_type(field.name, str(field.type)), nullable=False)
         for field in fields(record)]
    )  # fmt: skip


def _arrow_type(name: str, annotation: str) -> pa.DataType:
    # Digests are random, so their hex digits would only double the file.
    if name.endswith("sha256"):
        return pa.binary(32)
    return {"str": pa.string(), "int": pa.int64()}[annotation]


def _stored(field: pa.Field, value: Any) -> Any:
    return bytes.fromhex(value) if pa.types.is_fixed_size_binary(field.type) else value


def _read(record: type, folder: Path, file: TableFile) -> pa.Table:
    path = folder / file.path
    try:
        content = _verified(path, file)
    except MISSING:
        raise DataError(f"{path} is missing; restore it.") from None
    try:
        table = pa.ipc.open_file(content).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} isn't an Arrow file ({error}).") from error
    if table.num_rows != file.rows or not table.schema.equals(_schema(record)):
        raise DataError(
            f"{path} has {table.num_rows} records of ({', '.join(table.schema.names)}), expected "
            f"{file.rows} of ({', '.join(_schema(record).names)})."
        )
    return table


def _verified(path: Path, file: TableFile) -> pa.Buffer | pa.NativeFile:
    """Return a file's contents after its digest was compared, once per machine if it is large."""
    folder = _private_folder() if file.bytes > SMALL_BYTES else None
    if folder is None:
        content = read_bytes(path)
        _compare(path, file, hashlib.sha256(content).hexdigest())
        return pa.py_buffer(content)
    copy = folder / file.sha256
    try:
        # Processes that start together wait for the one that copies.
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not copy.exists() or copy.stat().st_size != file.bytes:
                _remove_unused(folder)
                _copy(path, file, copy)
            os.utime(copy)
        return pa.memory_map(str(copy))
    except MISSING:
        raise
    # This machine's disk is full or can't be written: each process reads for itself.
    except OSError:
        content = read_bytes(path)
        _compare(path, file, hashlib.sha256(content).hexdigest())
        return pa.py_buffer(content)


def _copy(path: Path, file: TableFile, copy: Path) -> None:
    digest = hashlib.sha256()
    with opened(path) as source, atomic_replacement(copy) as temporary:
        with temporary.open("wb") as target:
            while piece := source.read(_COPY_BYTES):
                digest.update(piece)
                target.write(piece)
        # A name in the folder stands for contents that were verified.
        _compare(path, file, digest.hexdigest())


def _compare(path: Path, file: TableFile, actual: str) -> None:
    if actual != file.sha256:
        raise DataError(
            f"{path}: expected sha256 {file.sha256[:12]}, found {actual[:12]}; restore it."
        )


def _private_folder() -> Path | None:
    """Return this user's folder of copies on this machine; None where nobody may vouch for it."""
    folder = Path(tempfile.gettempdir()) / f"raymill-tables-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = retried(folder, folder.lstat)
    except OSError:
        return None
    ours = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid()
    return folder if ours and not state.st_mode & 0o077 else None


def _remove_unused(folder: Path) -> None:
    for copy in folder.iterdir():
        with suppress(OSError):
            if time.time() - copy.stat().st_mtime > _UNUSED_S:
                copy.unlink()
