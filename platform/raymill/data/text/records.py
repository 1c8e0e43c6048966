"""Records of a planned piece, one after the other: documents, and what can't be used, named with
its place.

Memory is bounded by one record, however large the file; every byte read also goes through the
piece's sha256, so that the manifest can say exactly what was read.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from raymill.data.demo import stdlib_corpus
from raymill.data.store.manifest import AGAIN
from raymill.data.store.split import TRAIN, VALIDATION, is_held_out
from raymill.data.text.json_values import (
    UnusableRecordError,
    check_record,
    not_utf8,
    parse_record,
    printable,
)
from raymill.data.text.places import first_line as _first_line
from raymill.data.text.raw_streams import READ_BYTES, Hashing, Zstandard, whole_characters
from raymill.data.text.sources import BY_RECORD, LINE_BYTES, Piece
from raymill.data.text.table_values import plain_value
from raymill.errors import DataError
from raymill.reading import opened, status

DOCUMENT_BYTES = 8 * 2**20  # a longer text file is read as several documents, cut at line ends
PARQUET_ROWS = 256
MOST_NULS = (
    4  # one in so many characters of a text; ASCII in UTF-16 is UTF-8, too, with every second one
)


@dataclass(frozen=True)
class Document:
    """One text and the split it belongs to; `number`: which of its piece's lines or rows it is, if one."""

    split: str
    text: str
    number: int | None = None


@dataclass(frozen=True)
class Bad:
    """A record that can't be used. `where`: file:line (or row); `count`: how many such in a row.

    `cause` is what such records are counted by; `record` is kept for quarantine. `where` and `why` may repeat
    what a file holds, and are made printable.
    """

    where: str
    why: str
    count: int = 1
    cause: str = "unreadable"
    record: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", printable(self.where))
        object.__setattr__(self, "why", printable(self.why))


class RecordParser(Protocol):
    """What records are read as: documents, conversations, …"""

    def of_text(self, text: str, piece: Piece) -> Any:
        """A plain text's meaning, or a Bad without a place."""
        ...

    def of_record(self, record: Mapping[str, Any], piece: Piece, number: int) -> Any:
        """A record's meaning, or a Bad without a place; `number` counts a piece's lines or rows."""
        ...

    def columns(self, stored: pa.Schema, piece: Piece) -> list[str] | Bad:
        """Which columns of a table are needed, or why it can't be used."""
        ...


@dataclass(frozen=True)
class Reading:
    """Records read as documents; what of the configuration decides how."""

    text_column: str
    group_column: str | None
    fraction: float
    seed: int

    def of_text(self, text: str, piece: Piece) -> Document:
        """A whole text is a document."""
        return Document(piece.split, text)

    def of_record(self, record: Mapping[str, Any], piece: Piece, number: int = 0) -> Document | Bad:
        """The text column's document."""
        if self.text_column not in record:
            known = ", ".join(sorted(record)[:8]) or "none"
            return Bad("", f"no column {self.text_column!r} (has {known})")
        found = usable_text(record[self.text_column], f"column {self.text_column!r}")
        if isinstance(found, Bad):
            return found
        split = side_of(piece, record, self.group_column, self.fraction, self.seed)
        return split if isinstance(split, Bad) else Document(split, found, number)

    def columns(self, stored: pa.Schema, piece: Piece) -> list[str] | Bad:
        """Text, and the group where it decides the side."""
        wanted = [self.text_column]
        if piece.split == BY_RECORD and self.group_column is not None:
            wanted.append(self.group_column)
        return _column_problem(stored, wanted) or wanted


def usable_text(value: object, what: str) -> str | Bad:
    """A value that is text, or why not."""
    if isinstance(value, str):
        return value
    found = "null" if value is None else type(value).__name__
    return Bad("", f"{what} holds {found}, expected text")


def side_of(
    piece: Piece, record: Mapping[str, Any], column: str | None, fraction: float, seed: int
) -> str | Bad:
    """The split that a record falls on: its file's, or by the value of the group column."""
    if piece.split != BY_RECORD:
        return piece.split
    group = record.get(column or "")
    if not isinstance(group, str | int) or isinstance(group, bool):
        found = "null or nothing" if group is None else type(group).__name__
        return Bad("", f"group column {column!r} holds {found}, expected text or an integer")
    return VALIDATION if is_held_out(str(group), fraction, seed) else TRAIN


def read_records(piece: Piece, meaning: RecordParser, digest: hashlib._Hash) -> Iterator[Any]:
    """The records of a piece in file order; `digest` has seen all its bytes when the iterator ends.

    Yields what `meaning` makes of each, or Bad.

    Raises:
        DataError: the file is gone, changed since it was planned, or is damaged beyond single
        records.
        StorageError: it can't be read, which says nothing about its bytes.
    """
    if piece.length == 0:
        yield Bad(piece.name, "the file is empty")
        return
    if piece.format == "stdlib":
        yield from _stdlib(piece, digest)
        return
    if piece.format == "demo":
        for text in _demo(piece):
            digest.update(text.encode())
            yield Document(piece.split, text)
        return
    path = Path(piece.path)
    try:
        now = status(path)
        if now is None or (now.st_size, now.st_mtime_ns) != (piece.file_bytes, piece.modified_ns):
            raise DataError(
                f"{path} changed while it was being prepared; {AGAIN} when it is at rest."
            )
        if piece.format in ("parquet", "arrow"):
            yield from _table(piece, meaning, digest)
            return
        with opened(path) as file:
            file.seek(piece.offset)
            if piece.format in ("txt", "md"):
                yield from _text(piece, meaning, file, digest)
            elif piece.format == "jsonl":
                yield from _json_lines(piece, meaning, Hashing(file, digest, piece.length))
            else:
                yield from _compressed(piece, meaning, Hashing(file, digest, piece.length))
    # The OSErrors that are left are gzip's and Arrow's, about bytes that they have read.
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(
            f"{path} can't be read to its end ({error}): the file is damaged or incomplete; "
            f"replace or remove it and {AGAIN}."
        ) from error


def _stdlib(piece: Piece, digest: hashlib._Hash) -> Iterator[Document | Bad]:
    try:
        text = stdlib_corpus.read(piece.name)
    except (UnicodeDecodeError, SyntaxError) as error:
        yield Bad(piece.name, str(error))
        return
    digest.update(text.encode())
    yield Document(piece.split, text)


def _demo(piece: Piece) -> tuple[str, ...]:
    from raymill.data.demo.corpus import documents

    return documents(piece.name)


def _text(
    piece: Piece, meaning: RecordParser, file: BinaryIO, digest: hashlib._Hash
) -> Iterator[Any]:
    """A whole file, or the line-aligned parts of a large one."""
    left, line = piece.length, 0
    while left:
        content = file.read(min(DOCUMENT_BYTES, left))
        if len(content) < left:
            content += file.readline(min(LINE_BYTES, left - len(content)))
            content = whole_characters(content)
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
            yield Bad(f"{piece.name}:{number}", not_utf8(content, error))
        else:
            if piece.offset + piece.length - left == len(content):
                text = text.removeprefix("\ufeff")
            if text.count("\0") > len(text) // MOST_NULS:
                number = _first_line(piece) + line
                yield Bad(
                    f"{piece.name}:{number}",
                    "full of NUL characters, as UTF-16 is; convert it to UTF-8",
                )
            else:
                yield meaning.of_text(text, piece)
        line += content.count(b"\n")


def _compressed(piece: Piece, meaning: RecordParser, raw: Hashing) -> Iterator[Any]:
    source = io.BufferedReader(raw, READ_BYTES)
    if piece.format == "jsonl.gz":
        with gzip.open(source) as stream:
            yield from _json_lines(piece, meaning, stream)
    else:
        yield from _json_lines(piece, meaning, Zstandard(source))
    raw.drain()


def _json_lines(piece: Piece, meaning: RecordParser, stream: Any) -> Iterator[Any]:
    lines = io.BufferedReader(stream, READ_BYTES)
    base: int | None = None
    number, empty = 0, True
    while line := lines.readline(LINE_BYTES):
        found = _json_record(line, piece, meaning, number) if line.strip() else None
        empty = empty and found is None
        if isinstance(found, Bad):
            base = _first_line(piece) if base is None else base
            yield replace(found, where=f"{piece.name}:{base + number}")
        elif found is not None:
            yield found
        if not line.endswith(b"\n") and len(line) == LINE_BYTES:
            while line and not line.endswith(b"\n"):  # the rest of an overlong line
                line = lines.readline(READ_BYTES)
        number += 1
    if empty and piece.length == piece.file_bytes:
        yield Bad(piece.name, "the file holds no record")


def _json_record(line: bytes, piece: Piece, meaning: RecordParser, number: int) -> Any:
    """What the line means, or what is wrong with it."""
    if len(line) == LINE_BYTES and not line.endswith(b"\n"):
        return Bad("", f"the line is longer than {LINE_BYTES >> 20} MiB")
    try:
        record = parse_record(line)
    except UnusableRecordError as error:
        return Bad("", str(error), cause=error.cause)
    return meaning.of_record(record, piece, number)


def _table(piece: Piece, meaning: RecordParser, digest: hashlib._Hash) -> Iterator[Any]:
    """Row groups of a Parquet file, or an Arrow stream as `datasets.save_to_disk` writes it."""
    path = Path(piece.path)
    with opened(path) as raw:
        raw.seek(piece.offset)
        Hashing(raw, digest, piece.length).drain()
    if piece.format == "arrow":
        with opened(path) as source, pa.ipc.open_stream(source) as stream:
            rows = sum(batch.num_rows for batch in stream)
        with opened(path) as source, pa.ipc.open_stream(source) as stream:
            wanted = _wanted(stream.schema, piece, meaning)
            yield from _batches(piece, wanted, meaning, stream, 0, rows)
        return
    groups = range(piece.first_group, piece.first_group + piece.groups)
    with opened(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
        metadata = file.metadata
        rows = sum(metadata.row_group(group).num_rows for group in groups)
        first = sum(metadata.row_group(group).num_rows for group in range(piece.first_group))
        wanted = _wanted(file.schema_arrow, piece, meaning)
        columns = None if isinstance(wanted, Bad) else wanted
        batches = file.iter_batches(PARQUET_ROWS, row_groups=list(groups), columns=columns)
        yield from _batches(piece, wanted, meaning, batches, first, rows)


def _wanted(stored: pa.Schema, piece: Piece, meaning: RecordParser) -> list[str] | Bad:
    """The columns that are read, of which each must be there once: by name two can't be told apart."""
    try:
        counted = Counter(stored.names)
    except UnicodeDecodeError:
        return Bad("", "the name of a column isn't UTF-8", cause="format")
    once = {name: stored.field(stored.names.index(name)) for name in counted}
    wanted = meaning.columns(pa.schema(once.values()), piece)
    if isinstance(wanted, Bad):
        return wanted
    twice = next((name for name in wanted if counted[name] > 1), None)
    if twice is None:
        return wanted
    return Bad("", f"{counted[twice]} columns are named {twice!r}, expected one", cause="format")


def _batches(
    piece: Piece,
    wanted: list[str] | Bad,
    meaning: RecordParser,
    batches: Iterable[pa.RecordBatch],
    first: int,
    rows: int,
) -> Iterator[Any]:
    if not rows:
        yield Bad(piece.name, "the table has no rows")
        return
    if isinstance(wanted, Bad):
        yield replace(wanted, where=f"{piece.name}, rows {first} to {first + rows - 1}", count=rows)
        return
    row = first
    for batch in batches:
        columns = {name: batch.column(name) for name in wanted}
        for index in range(batch.num_rows):
            record = _row(columns, index)
            found = (
                record if isinstance(record, Bad) else meaning.of_record(record, piece, row - first)
            )
            yield (
                replace(found, where=f"{piece.name}, row {row}")
                if isinstance(found, Bad)
                else found
            )
            row += 1


def _row(columns: Mapping[str, pa.Array], index: int) -> dict[str, Any] | Bad:
    """A row's values as Python has them, or why it has none such: dates of the year 300,000, bytes that aren't
    UTF-8, objects with two fields of one name."""
    record = {}
    for name, column in columns.items():
        try:
            record[name] = plain_value(column[index].as_py(), column.type, f"column {name!r}")
        except UnusableRecordError as error:
            return Bad("", f"column {name!r}: {error}", cause=error.cause)
        except UnicodeDecodeError as error:
            return Bad("", f"column {name!r} is not UTF-8 ({error.reason})")
        except _UNCONVERTIBLE as error:
            why = f"column {name!r} holds {column.type}, and can't be read: {error}"
            return Bad("", why)
    try:
        check_record(record)
    except UnusableRecordError as error:
        return Bad("", str(error), cause=error.cause)
    return record


# What Arrow raises for single values. Damage shows when a batch is read, before its values are.
_UNCONVERTIBLE = (
    ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError, pa.ArrowException,
)  # fmt: skip


def _column_problem(stored: pa.Schema, wanted: list[str]) -> Bad | None:
    for name in wanted:
        if name not in stored.names:
            return Bad("", f"no column {name!r} (has {', '.join(stored.names[:8])})")
    kind = stored.field(wanted[0]).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    ):
        return Bad("", f"column {wanted[0]!r} holds {kind}, expected text")
    return None
