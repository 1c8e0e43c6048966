"""Reads of a checkpoint's files that verify every byte which they return.

A file with a table of digests (`chunks.py`) is verified chunk by chunk: each read takes whole
chunks. One without is read and verified whole before its first bytes are returned.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from raymill.checkpoint.chunks import CHUNK_BYTES, DIGEST_BYTES, content_bytes
from raymill.checkpoint.file_record import DamagedError, FileRecord
from raymill.checkpoint.layout import Piece
from raymill.reading import MISSING, read_range

# Bytes of one read, which is a request where storage is remote.
READ_BYTES = 8 * 2**20
# Two pieces so close to each other are read at once, with what lies between them.
GAP_BYTES = 2**20
# Reads at once, and reads that are planned ahead.
_READERS = 4
_PLANNED = 64


class CheckpointFiles(Protocol):
    """Files of one checkpoint, wherever they are kept."""

    @property
    def location(self) -> str:
        """Folder or URI, for messages."""
        ...

    def read_into(self, name: str, offset: int, buffer: memoryview) -> int:
        """Fill the buffer with a file's bytes from an offset on; return how many there were.

        Raises:
            OSError: one of `MISSING`: there is no such file.
            StorageError: it can't be read, which says nothing about it.
        """
        ...


@dataclass(frozen=True)
class LocalFiles:
    """Files in a folder."""

    directory: Path

    @property
    def location(self) -> str:
        """Folder, for messages."""
        return str(self.directory)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> int:
        """Fill the buffer with a file's bytes; see `CheckpointFiles`."""
        return read_range(self.directory / name, offset, buffer)


@dataclass
class ReadRun:
    """Chunks [first, stop) of a file, read at once, and the pieces that lie in them."""

    first: int
    stop: int
    pieces: list[Piece] = field(default_factory=list)


class VerifiedFiles:
    """Files of a checkpoint, and their records in its manifest."""

    def __init__(self, files: CheckpointFiles, records: Mapping[str, FileRecord]) -> None:
        self.files = files
        self._records = records
        self._tables: dict[str, bytes] = {}
        self._whole: set[str] = set()

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return bytes of a file, verified."""
        data = bytearray(size)
        self.scatter([(name, [(offset, memoryview(data))])])
        return bytes(data)

    def whole(self, name: str) -> bytes:
        """Return a small file's bytes, verified."""
        return self.read(name, 0, self._record(name).bytes)

    def scatter(self, wanted: Iterable[tuple[str, list[Piece]]]) -> None:
        """Copy pieces of files, which are in the order of their offsets, to their destinations.

        Raises:
            DamagedError: a file is missing, or has other bytes than were committed.
            StorageError: a file can't be read, which says nothing about it.
        """
        with _Tasks() as tasks:
            for name, pieces in wanted:
                prepared = tasks.add(partial(self._prepare, name))
                for run in plan_runs(pieces, self._chunk_bytes(name)):
                    tasks.add(partial(self._read_run, name, run, prepared))

    def verify(self, names: Iterable[str]) -> None:
        """Read and verify every byte of some files; see `scatter`."""
        with _Tasks() as tasks:
            for name in names:
                tasks.add(partial(self._verify, name))

    def damaged(self, name: str, reason: str) -> DamagedError:
        """Return the error that says what is wrong with a file."""
        location = self.files.location
        return DamagedError(f"{location}/{name} {reason}", location)

    def _record(self, name: str) -> FileRecord:
        record = self._records.get(name)
        if record is None:
            raise self.damaged(name, "isn't named by the checkpoint's manifest")
        return record

    def _chunk_bytes(self, name: str) -> int:
        return self._record(name).chunk_bytes or CHUNK_BYTES

    def _prepare(self, name: str) -> None:
        """Read what it takes to verify a file: its table, or all of it."""
        record = self._record(name)
        if record.chunk_bytes:
            if name not in self._tables:
                self._tables[name] = self._read_table(name, record)
        elif name not in self._whole:
            self._verify(name)
            self._whole.add(name)

    def _read_table(self, name: str, record: FileRecord) -> bytes:
        content = content_bytes(record.bytes, record.chunk_bytes)
        table = bytes(self._fill(name, content, record.bytes - content))
        found = hashlib.sha256(table).hexdigest()
        if found != record.sha256:
            raise self.damaged(
                name, f"is damaged: {_difference('table of digests', found, record)}"
            )
        return table

    def _read_run(self, name: str, run: ReadRun, prepared: Future[None]) -> None:
        """Read the chunks of a run, verify those that its pieces touch, and copy the pieces."""
        prepared.result()
        record, size = self._record(name), self._chunk_bytes(name)
        end = content_bytes(record.bytes, size) if record.chunk_bytes else record.bytes
        base = run.first * size
        data = self._fill(name, base, min(run.stop * size, end) - base)
        if record.chunk_bytes:
            touched = {
                chunk
                for offset, out in run.pieces
                for chunk in range(offset // size, -(-(offset + len(out)) // size))
            }
            self._compare(name, data, run.first, sorted(touched))
        for offset, out in run.pieces:
            out[:] = data[offset - base : offset - base + len(out)]

    def _compare(self, name: str, data: memoryview, first: int, chunks: Iterable[int]) -> None:
        """Compare chunks, of which `data` holds those from `first` on, with the file's table."""
        size, table = self._record(name).chunk_bytes, self._tables[name]
        for chunk in chunks:
            piece = data[(chunk - first) * size : (chunk + 1 - first) * size]
            expected = table[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]
            if hashlib.sha256(piece).digest() != expected:
                raise self.damaged(
                    name,
                    f"is damaged: its bytes {chunk * size} to {chunk * size + len(piece) - 1} "
                    "don't have the digest that was committed",
                )

    def _verify(self, name: str) -> None:
        """Read and verify every byte of a file."""
        record = self._record(name)
        if record.chunk_bytes:
            self._tables[name] = self._read_table(name, record)
            content = content_bytes(record.bytes, record.chunk_bytes)
            chunks = -(-content // record.chunk_bytes)
            step = max(1, READ_BYTES // record.chunk_bytes)
            for first in range(0, chunks, step):
                base = first * record.chunk_bytes
                stop = min(first + step, chunks)
                data = self._fill(name, base, min(stop * record.chunk_bytes, content) - base)
                self._compare(name, data, first, range(first, stop))
            return
        digest = hashlib.sha256()
        for base in range(0, record.bytes, READ_BYTES):
            digest.update(self._fill(name, base, min(READ_BYTES, record.bytes - base)))
        if digest.hexdigest() != record.sha256:
            raise self.damaged(name, f"is damaged: {_difference('it', digest.hexdigest(), record)}")

    def _fill(self, name: str, offset: int, size: int) -> memoryview:
        """Return bytes of a file, not verified."""
        data = np.empty(size, np.uint8).data
        try:
            count = self.files.read_into(name, offset, data)
        except MISSING:
            raise self.damaged(name, "is missing") from None
        if count < size:
            expected = self._record(name).bytes
            raise self.damaged(name, f"has {offset + count} bytes, its manifest says {expected}")
        return data


def plan_runs(pieces: Iterable[Piece], chunk_bytes: int) -> Iterator[ReadRun]:
    """Yield runs of chunks that hold the pieces, which are in order; no chunk is in two runs."""
    gap, limit = -(-GAP_BYTES // chunk_bytes), max(1, READ_BYTES // chunk_bytes)
    run: ReadRun | None = None
    for offset, out in pieces:
        while len(out):
            chunk = offset // chunk_bytes
            if run is None or chunk >= min(run.first + limit, run.stop + gap):
                if run is not None:
                    yield run
                run = ReadRun(chunk, chunk)
            # What lies beyond the longest run comes with the next one.
            count = min(len(out), (run.first + limit) * chunk_bytes - offset)
            run.pieces.append((offset, out[:count]))
            run.stop = max(run.stop, -(-(offset + count) // chunk_bytes))
            offset, out = offset + count, out[count:]
    if run is not None:
        yield run


class _Tasks:
    """Tasks run by a few threads, in order; the first failure is raised, and cancels the others."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_READERS)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> _Tasks:
        return self

    def add(self, work: Callable[[], None]) -> Future[None]:
        """Add a task; wait for earlier ones if many are waiting already."""
        # Each waiting task holds a plan, and there may be millions of pieces.
        while len(self._pending) >= _PLANNED:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(work))
        return self._pending[-1]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._pending and kind is None:
                self._pending.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)


def _difference(what: str, found: str, record: FileRecord) -> str:
    return f"{what} has sha256 {found[:12]}…, its manifest says {record.sha256[:12]}…"
