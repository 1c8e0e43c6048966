"""Read the records of an input range, one after another: documents, and bad records with their
location.

Memory is bounded by one record, however large the file; every byte that is read also goes through
the range's sha256, so that the manifest states exactly what was read.
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

from raymill.data.demo import corpus as demo_corpus
from raymill.data.demo import stdlib_corpus
from raymill.data.sources.inputs import BY_RECORD, LINE_BYTES, InputRange
from raymill.data.sources.json_values import (
    UnusableRecordError,
    check_record,
    not_utf8,
    parse_record,
    printable,
)
from raymill.data.sources.raw_streams import (
    READ_BYTES,
    Hashing,
    Zstandard,
    first_line_number,
    whole_characters,
)
from raymill.data.sources.table_values import plain_value
from raymill.data.store.manifest import AGAIN
from raymill.data.store.split import TRAIN, VALIDATION, is_held_out
from raymill.errors import DataError
from raymill.reading import opened, status

# A longer text file is read as several documents, cut at line ends.
DOCUMENT_BYTES = 8 * 2**20
PARQUET_ROWS = 256
# A text may have one NUL in so many characters. ASCII in UTF-16 is valid UTF-8 too, but every second
# character of it is NUL.
CHARACTERS_PER_NUL = 4


# A record as JSON or a table row has it: values by key or column.
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Bad:
    """Record that can't be used. `where`: file:line (or row); `count`: the number of such records
    in a row.

    `cause` is the category in which it is counted; `record` is kept for quarantine. `where` and
    `why` may repeat the contents of a file, and are made printable.
    """

    where: str
    why: str
    count: int = 1
    cause: str = "unreadable"
    record: object = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", printable(self.where))
        object.__setattr__(self, "why", printable(self.why))


class RecordParser(Protocol):
    """Parser of records: into documents, conversations, and so on."""

    def parse_text(self, text: str, span: InputRange) -> Any:
        """Parse a plain text, or return a Bad without a location."""
        ...

    def parse_record(self, record: Record, span: InputRange, number: int) -> Any:
        """Parse a record, or return a Bad without a location; `number` counts the range's lines or
        rows."""
        ...

    def columns(self, stored: pa.Schema, span: InputRange) -> list[str] | Bad:
        """Return the columns of a table that are needed, or a Bad if the table can't be used."""
        ...


def record_split(
    span: InputRange,
    record: Record,
    column: str | None,
    fraction: float,
    seed: int,
) -> str | Bad:
    """Return a record's split: its file's, or the one that the group column's value falls into."""
    if span.split != BY_RECORD:
        return span.split
    group = record.get(column or "")
    if not isinstance(group, str | int) or isinstance(group, bool):
        kind = "null or nothing" if group is None else type(group).__name__
        return Bad("", f"group column {column!r} holds {kind}, expected text or an integer")
    return VALIDATION if is_held_out(str(group), fraction, seed) else TRAIN


def read_records(span: InputRange, parser: RecordParser, digest: hashlib._Hash) -> Iterator[Any]:
    """Yield the records of an input range in file order, each parsed by `parser`, or a Bad.

    `digest` has been updated with all bytes of the range when the iterator ends.

    Raises:
        DataError: the file is gone, has changed since it was planned, or is damaged beyond single
            records.
        StorageError: it can't be read, which says nothing about its bytes.
    """
    if span.length == 0:
        yield Bad(span.name, "the file is empty")
        return
    if span.format == "stdlib":
        yield from _stdlib(span, parser, digest)
        return
    if span.format == "demo":
        for text in demo_corpus.documents(span.name):
            digest.update(text.encode())
            yield parser.parse_text(text, span)
        return
    path = Path(span.path)
    try:
        current = status(path)
        if current is None or (current.st_size, current.st_mtime_ns) != (
            span.file_bytes,
            span.modified_ns,
        ):
            raise DataError(
                f"{path} changed during preparation; {AGAIN} when it no longer changes."
            )
        if span.format in ("parquet", "arrow"):
            yield from _table(span, parser, digest)
            return
        with opened(path) as file:
            file.seek(span.offset)
            if span.format in ("txt", "md"):
                yield from _text(span, parser, file, digest)
            elif span.format == "jsonl":
                yield from _json_lines(span, parser, Hashing(file, digest, span.length))
            else:
                yield from _compressed(span, parser, Hashing(file, digest, span.length))
    # `retried` turns failures of the storage into StorageError; errors that are left come from gzip
    # and Arrow, about bytes that were read.
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(
            f"{path} can't be read to its end ({error}): the file is damaged or incomplete; "
            f"replace or remove it and {AGAIN}."
        ) from error


def _stdlib(span: InputRange, parser: RecordParser, digest: hashlib._Hash) -> Iterator[Any]:
    try:
        text = stdlib_corpus.read(span.name)
    except (UnicodeDecodeError, SyntaxError) as error:
        yield Bad(span.name, str(error))
        return
    digest.update(text.encode())
    yield parser.parse_text(text, span)


def _text(
    span: InputRange, parser: RecordParser, file: BinaryIO, digest: hashlib._Hash
) -> Iterator[Any]:
    """Read a whole file, or the line-aligned parts of a large one."""
    bytes_left, line = span.length, 0
    while bytes_left:
        content = file.read(min(DOCUMENT_BYTES, bytes_left))
        if len(content) < bytes_left:
            content += file.readline(min(LINE_BYTES, bytes_left - len(content)))
            # A line that is longer than the limit is cut in the middle of it.
            content = whole_characters(content)
        if not content:
            raise DataError(
                f"{span.path} changed during preparation; {AGAIN} when it no longer changes."
            )
        digest.update(content)
        bytes_left -= len(content)
        file.seek(span.offset + span.length - bytes_left)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            number = first_line_number(span) + line + content.count(b"\n", 0, error.start)
            yield Bad(f"{span.name}:{number}", not_utf8(content, error))
        else:
            if span.offset + span.length - bytes_left == len(content):
                text = text.removeprefix("\ufeff")
            if text.count("\0") > len(text) // CHARACTERS_PER_NUL:
                number = first_line_number(span) + line
                yield Bad(
                    f"{span.name}:{number}",
                    "full of NUL characters, as UTF-16 is; convert it to UTF-8",
                )
            else:
                yield parser.parse_text(text, span)
        line += content.count(b"\n")


def _compressed(span: InputRange, parser: RecordParser, raw: Hashing) -> Iterator[Any]:
    source = io.BufferedReader(raw, READ_BYTES)
    if span.format == "jsonl.gz":
        with gzip.open(source) as stream:
            yield from _json_lines(span, parser, stream)
    else:
        yield from _json_lines(span, parser, Zstandard(source))
    # The digest covers the whole range, although a decompressor may stop before its end.
    raw.drain()


def _json_lines(span: InputRange, parser: RecordParser, stream: Any) -> Iterator[Any]:
    lines = io.BufferedReader(stream, READ_BYTES)
    base: int | None = None
    number, empty = 0, True
    while line := lines.readline(LINE_BYTES):
        result = _json_record(line, span, parser, number) if line.strip() else None
        empty = empty and result is None
        if isinstance(result, Bad):
            # Counting lines reads the file, so it is done only for a bad record.
            base = first_line_number(span) if base is None else base
            yield replace(result, where=f"{span.name}:{base + number}")
        elif result is not None:
            yield result
        if not line.endswith(b"\n") and len(line) == LINE_BYTES:
            # Skip the rest of the overlong line.
            while line and not line.endswith(b"\n"):
                line = lines.readline(READ_BYTES)
        number += 1
    if empty and span.length == span.file_bytes:
        yield Bad(span.name, "the file holds no record")


def _json_record(line: bytes, span: InputRange, parser: RecordParser, number: int) -> Any:
    """Parse a line, or return a Bad."""
    if len(line) == LINE_BYTES and not line.endswith(b"\n"):
        return Bad("", f"the line is longer than {LINE_BYTES >> 20} MiB")
    try:
        record = parse_record(line)
    except UnusableRecordError as error:
        return Bad("", str(error), cause=error.cause)
    return parser.parse_record(record, span, number)


def _table(span: InputRange, parser: RecordParser, digest: hashlib._Hash) -> Iterator[Any]:
    """Read row groups of a Parquet file, or an Arrow stream as `datasets.save_to_disk` writes
    it."""
    path = Path(span.path)
    with opened(path) as raw:
        raw.seek(span.offset)
        # Parquet is read in random order, so its bytes are hashed in a pass of their own.
        Hashing(raw, digest, span.length).drain()
    if span.format == "arrow":
        with opened(path) as source, pa.ipc.open_stream(source) as stream:
            rows = sum(batch.num_rows for batch in stream)
        with opened(path) as source, pa.ipc.open_stream(source) as stream:
            wanted = _columns_to_read(stream.schema, span, parser)
            yield from _batches(span, wanted, parser, stream, 0, rows)
        return
    groups = range(span.first_group, span.first_group + span.groups)
    with opened(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
        metadata = file.metadata
        rows = sum(metadata.row_group(group).num_rows for group in groups)
        first = sum(metadata.row_group(group).num_rows for group in range(span.first_group))
        wanted = _columns_to_read(file.schema_arrow, span, parser)
        columns = None if isinstance(wanted, Bad) else wanted
        batches = file.iter_batches(PARQUET_ROWS, row_groups=list(groups), columns=columns)
        yield from _batches(span, wanted, parser, batches, first, rows)


def _columns_to_read(stored: pa.Schema, span: InputRange, parser: RecordParser) -> list[str] | Bad:
    """Return the columns to read, each of which must exist once: equal names are
    ambiguous."""
    try:
        counts = Counter(stored.names)
    except UnicodeDecodeError:
        return Bad("", "the name of a column isn't UTF-8", cause="format")
    # A name that occurs twice can't be looked up in a schema.
    once = {name: stored.field(stored.names.index(name)) for name in counts}
    wanted = parser.columns(pa.schema(once.values()), span)
    if isinstance(wanted, Bad):
        return wanted
    twice = next((name for name in wanted if counts[name] > 1), None)
    if twice is None:
        return wanted
    return Bad("", f"{counts[twice]} columns are named {twice!r}, expected one", cause="format")


def _batches(
    span: InputRange,
    wanted: list[str] | Bad,
    parser: RecordParser,
    batches: Iterable[pa.RecordBatch],
    first: int,
    rows: int,
) -> Iterator[Any]:
    if not rows:
        yield Bad(span.name, "the table has no rows")
        return
    if isinstance(wanted, Bad):
        yield replace(wanted, where=f"{span.name}, rows {first} to {first + rows - 1}", count=rows)
        return
    row = first
    for batch in batches:
        columns = {name: batch.column(name) for name in wanted}
        for index in range(batch.num_rows):
            record = _row(columns, index)
            result = (
                record
                if isinstance(record, Bad)
                else parser.parse_record(record, span, row - first)
            )
            yield (
                replace(result, where=f"{span.name}, row {row}")
                if isinstance(result, Bad)
                else result
            )
            row += 1


def _row(columns: Mapping[str, pa.Array], index: int) -> dict[str, Any] | Bad:
    """Return a row's values as Python objects, or a Bad if there are none.

    Python can't hold dates of the year 300,000, bytes that aren't UTF-8 as text, or objects with
    two fields of one name.
    """
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


# Errors that Arrow raises for single values. Damage shows earlier, when a batch is read.
_UNCONVERTIBLE = (
    ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError, pa.ArrowException,
)  # fmt: skip
