"""Records of a planned piece, one after the other: documents, and what can't be used, named with
its place.

Memory is bounded by one record, however large the file; every byte read also goes through the
piece's sha256, so that the manifest can say exactly what was read.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymill.data import stdlib_corpus
from raymill.data.manifest import AGAIN
from raymill.data.sources import BY_RECORD, LINE_BYTES, Piece
from raymill.data.split import TRAIN, VALIDATION, is_held_out
from raymill.errors import DataError

DOCUMENT_BYTES = 8 * 2**20  # a longer text file is read as several documents, cut at line ends
READ_BYTES = 1 << 20
COMPRESSED_BYTES = 1 << 16  # may expand twentyfold
PARQUET_ROWS = 256


@dataclass(frozen=True)
class Document:
    """One text and the split it belongs to."""

    split: str
    text: str


@dataclass(frozen=True)
class Bad:
    """A record that can't be used. `where`: file:line (or row); `count`: how many such in a row."""

    where: str
    why: str
    count: int = 1


Record = Document | Bad


@dataclass(frozen=True)
class Reading:
    """What of the configuration decides how records are read."""

    text_column: str
    group_column: str | None
    fraction: float
    seed: int


def read_records(piece: Piece, reading: Reading, digest: hashlib._Hash) -> Iterator[Record]:
    """The records of a piece in file order; `digest` has seen all its bytes when the iterator ends.

    Raises:
        DataError: the file is gone, changed since it was planned, or is damaged beyond single
        records.
    """
    if piece.length == 0:
        yield Bad(piece.name, "the file is empty")
        return
    if piece.format == "stdlib":
        yield from _stdlib(piece, digest)
        return
    path = Path(piece.path)
    try:
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) != (piece.file_bytes, piece.modified_ns):
            raise DataError(
                f"{path} changed while it was being prepared; {AGAIN} when it is at rest."
            )
        if piece.format == "parquet":
            yield from _parquet(piece, reading, digest)
            return
        with path.open("rb") as file:
            file.seek(piece.offset)
            if piece.format in ("txt", "md"):
                yield from _text(piece, file, digest)
            elif piece.format == "jsonl":
                yield from _json_lines(piece, reading, _Hashing(file, digest, piece.length))
            else:
                yield from _compressed(piece, reading, _Hashing(file, digest, piece.length))
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(
            f"{path} can't be read to its end ({error}): the file is damaged or incomplete; "
            f"replace or remove it and {AGAIN}."
        ) from error


class _Hashing(io.RawIOBase):
    """Reads at most `length` bytes of a file and passes them through a digest."""

    def __init__(self, file: BinaryIO, digest: hashlib._Hash, length: int) -> None:
        super().__init__()
        self._file, self._digest, self._left = file, digest, length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        content = self._file.read(min(len(view), self._left))
        view[: len(content)] = content
        self._digest.update(content)
        self._left -= len(content)
        return len(content)

    def drain(self) -> None:
        """Digest what the decompressor left unread."""
        while self.read(READ_BYTES):
            pass


class _Zstandard(io.RawIOBase):
    """Decompresses one frame after the other.

    `zstandard.stream_reader` takes a file that was cut off for one that ends there; this one doesn't.
    """

    def __init__(self, source: BinaryIO | io.BufferedReader) -> None:
        import zstandard

        super().__init__()
        self._source = source
        self._codec = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._error = zstandard.ZstdError
        self._frame = self._codec.decompressobj()
        self._inside = False  # a frame has begun and not ended
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._more():
            pass
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _more(self) -> bool:
        """Decompress the next stretch of input; False at the end of the last frame."""
        content = self._frame.unused_data if self._frame.eof else b""
        content = content or self._source.read(COMPRESSED_BYTES)
        if not content:
            if self._inside:
                raise EOFError("the compressed stream ends in the middle of a frame")
            return False
        if self._frame.eof:
            self._frame = self._codec.decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(content))
        except self._error as error:
            raise EOFError(str(error)) from error
        self._inside = not self._frame.eof
        return True


def _stdlib(piece: Piece, digest: hashlib._Hash) -> Iterator[Record]:
    try:
        text = stdlib_corpus.read(piece.name)
    except (UnicodeDecodeError, SyntaxError) as error:
        yield Bad(piece.name, str(error))
        return
    digest.update(text.encode())
    yield Document(piece.split, text)


def _text(piece: Piece, file: BinaryIO, digest: hashlib._Hash) -> Iterator[Record]:
    """A whole file, or the line-aligned parts of a large one."""
    left, line = piece.length, 0
    while left:
        content = file.read(min(DOCUMENT_BYTES, left))
        if len(content) < left:
            content += file.readline(min(LINE_BYTES, left - len(content)))
            content = _whole_characters(content)
        if not content:
            raise DataError(
                f"{piece.path} changed while it was being prepared; {AGAIN} when it is at rest."
            )
        digest.update(content)
        left -= len(content)
        file.seek(piece.offset + piece.length - left)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            number = _first_line(piece) + line + content.count(b"\n", 0, error.start)
            yield Bad(f"{piece.name}:{number}", f"not UTF-8 ({error.reason})")
        else:
            if piece.offset + piece.length - left == len(content):
                text = text.removeprefix("\ufeff")
            yield Document(piece.split, text)
        line += content.count(b"\n")


def _whole_characters(content: bytes) -> bytes:
    """Leave off a UTF-8 character that a cut in the middle of an endless line would halve."""
    if content.endswith(b"\n"):
        return content
    for back in range(1, 4):
        if (
            content[-back] >= 0xC0
        ):  # a leading byte: the character it starts may go on after the cut
            return content[:-back]
        if content[-back] < 0x80:
            break
    return content


def _first_line(piece: Piece) -> int:
    """The number of a piece's first line: counted only when there is something to name."""
    left, lines = piece.offset, 1
    with Path(piece.path).open("rb") as file:
        while left and (content := file.read(min(READ_BYTES, left))):
            lines += content.count(b"\n")
            left -= len(content)
    return lines


def _compressed(piece: Piece, reading: Reading, raw: _Hashing) -> Iterator[Record]:
    source = io.BufferedReader(raw, READ_BYTES)
    if piece.format == "jsonl.gz":
        with gzip.open(source) as stream:
            yield from _json_lines(piece, reading, stream)
    else:
        yield from _json_lines(piece, reading, _Zstandard(source))
    raw.drain()


def _json_lines(piece: Piece, reading: Reading, stream: Any) -> Iterator[Record]:
    lines = io.BufferedReader(stream, READ_BYTES)
    base: int | None = None
    number = 0
    while line := lines.readline(LINE_BYTES):
        found = _json_record(line, piece, reading) if line.strip() else None
        if isinstance(found, str):
            base = _first_line(piece) if base is None else base
            yield Bad(f"{piece.name}:{base + number}", found)
        elif found is not None:
            yield found
        if not line.endswith(b"\n") and len(line) == LINE_BYTES:
            while line and not line.endswith(b"\n"):  # the rest of an overlong line
                line = lines.readline(READ_BYTES)
        number += 1


def _json_record(line: bytes, piece: Piece, reading: Reading) -> Document | str:
    """A document, or what is wrong with the line."""
    if len(line) == LINE_BYTES and not line.endswith(b"\n"):
        return f"the line is longer than {LINE_BYTES >> 20} MiB"
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 ({error.reason})"
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if not isinstance(record, dict):
        return f"expected a JSON object, found {type(record).__name__}"
    if reading.text_column not in record:
        return f"no column {reading.text_column!r} (has {', '.join(sorted(record)[:8]) or 'none'})"
    return _checked(
        record[reading.text_column], record.get(reading.group_column or ""), piece, reading
    )


def _checked(text: object, group: object, piece: Piece, reading: Reading) -> Document | str:
    column = reading.text_column
    if not isinstance(text, str):
        found = "null" if text is None else type(text).__name__
        return f"column {column!r} holds {found}, expected text"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return f"column {column!r} holds half of a surrogate pair, which isn't text"
    if piece.split != BY_RECORD:
        return Document(piece.split, text)
    if not isinstance(group, str | int) or isinstance(group, bool):
        found = "null or nothing" if group is None else type(group).__name__
        return f"group column {reading.group_column!r} holds {found}, expected text or an integer"
    held_out = is_held_out(str(group), reading.fraction, reading.seed)
    return Document(VALIDATION if held_out else TRAIN, text)


def _parquet(piece: Piece, reading: Reading, digest: hashlib._Hash) -> Iterator[Record]:
    with Path(piece.path).open("rb") as raw:
        raw.seek(piece.offset)
        _Hashing(raw, digest, piece.length).drain()
    groups = range(piece.first_group, piece.first_group + piece.groups)
    with pq.ParquetFile(piece.path, page_checksum_verification=True) as file:
        metadata = file.metadata
        rows = sum(metadata.row_group(group).num_rows for group in groups)
        first = sum(metadata.row_group(group).num_rows for group in range(piece.first_group))
        wanted = [reading.text_column]
        if piece.split == BY_RECORD and reading.group_column is not None:
            wanted.append(reading.group_column)
        problem = _column_problem(file.schema_arrow, wanted)
        if problem:
            yield Bad(f"{piece.name}, rows {first} to {first + rows - 1}", problem, rows)
            return
        row = first
        for batch in file.iter_batches(PARQUET_ROWS, row_groups=list(groups), columns=wanted):
            texts = pc.cast(batch.column(wanted[0]), pa.large_binary())
            others = batch.column(wanted[-1]) if len(wanted) > 1 else None
            for index, content in enumerate(texts.to_pylist()):
                group = others[index].as_py() if others is not None else None
                found = _parquet_record(content, group, piece, reading)
                yield Bad(f"{piece.name}, row {row}", found) if isinstance(found, str) else found
                row += 1


def _parquet_record(
    content: bytes | None, group: object, piece: Piece, reading: Reading
) -> Document | str:
    try:
        text = None if content is None else content.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 ({error.reason})"
    return _checked(text, group, piece, reading)


def _column_problem(stored: pa.Schema, wanted: list[str]) -> str | None:
    for name in wanted:
        if name not in stored.names:
            return f"no column {name!r} (has {', '.join(stored.names[:8])})"
    kind = stored.field(wanted[0]).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    ):
        return f"column {wanted[0]!r} holds {kind}, expected text"
    return None
