"""Formats of input files: how a file is cut into ranges, and how a range is read as records.

A format is one class, listed in `registry.py`. Memory is bounded by one record, however large the file; every
byte that is read also goes through the range's sha256, so that the manifest states exactly what was read.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, BinaryIO, ClassVar, Protocol

import pyarrow as pa

from raymill.data.sources.inputs import BY_RECORD, InputRange
from raymill.data.sources.json_values import printable
from raymill.data.sources.raw_streams import (
    READ_BYTES,
    Hashing,
    compression_of,
    decompressed,
    first_line_number,
    open_input,
)
from raymill.data.store.split import TRAIN, VALIDATION, is_held_out
from raymill.errors import DataError

# A record as JSON or a table row has it: values by key or column.
Record = Mapping[str, Any]
# Errors of gzip, zstd and Arrow about bytes that were read; failures of the storage are StorageErrors.
DAMAGE = (OSError, EOFError, zlib.error, pa.ArrowException)


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


class DamagedInputError(DataError):
    """File whose bytes can't be read to their end. In a declared source, it is one bad record."""


@dataclass(frozen=True)
class Skipped(Bad):
    """Record that is no document and no error, as a page without text; counted by its cause alone."""

    @classmethod
    def because(cls, cause: str) -> Skipped:
        """Return a record that is counted under `cause`, a short phrase of few different ones."""
        return cls("", cause, cause=cause)


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a record in its file as stored.

    `offset` and `length` count bytes of the file; of its decompressed contents where it is compressed as a
    whole; in a table, rows. `sha256` is the digest of those bytes, or of a row's text in UTF-8, which the
    parser adds. `number` counts the lines or rows of the input range, None where it isn't counted.
    """

    offset: int
    length: int
    sha256: bytes = b""
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Record as a format reads it. `text` is its text where the format knows it, None where a column holds
    it."""

    values: Record
    place: Place
    text: str | None = None


class RecordParser(Protocol):
    """Parser of records: into documents, conversations, and so on."""

    def parse_text(self, text: str, values: Record, span: InputRange, place: Place) -> Any:
        """Parse a text and what the format knows about it (`url`, `language`), or return a Bad without a
        location."""
        ...

    def parse_record(self, record: Record, span: InputRange, place: Place) -> Any:
        """Parse a record, or return a Bad without a location."""
        ...

    def columns(self, stored: pa.Schema, span: InputRange) -> list[str] | Bad:
        """Return the columns of a table that are needed, or a Bad if the table can't be used."""
        ...


class Format:
    """Base of formats; a subclass states its names and reads `records`.

    `name` is what `data.sources.*.format` says; `endings` are those by which files are recognized, without
    compression. `text_only`: its records are texts, which conversations can't be read from. `has_columns`:
    its records have values by which `data.validation.group_column` can split them. `compressible`: a file
    may be compressed as a whole (`.gz`, `.zst`); other formats read their compressed bytes themselves.
    `extracts`: its texts are extracted from pages, as `data.extraction` says. `is_embedded`: its texts come
    with the package and aren't files.
    """

    name: ClassVar[str]
    endings: ClassVar[tuple[str, ...]] = ()
    text_only: ClassVar[bool] = True
    has_columns: ClassVar[bool] = True
    compressible: ClassVar[bool] = False
    extracts: ClassVar[bool] = False
    is_embedded: ClassVar[bool] = False

    def cut(self, file: InputRange, unit_bytes: int) -> Iterator[InputRange]:
        """Yield ranges of about `unit_bytes`, in order; the whole file where it can't be cut."""
        yield file

    def records(self, span: InputRange, stream: io.BufferedReader) -> Iterator[Found | Bad]:
        """Yield the records of a range from its bytes, decompressed if `compressible`.

        Raises one of DAMAGE where the bytes are damaged.
        """
        raise NotImplementedError

    def read(self, span: InputRange, parser: RecordParser, digest: hashlib._Hash) -> Iterator[Any]:
        """Yield parsed records and Bads; `digest` has seen all bytes of the range at the end."""
        with open_input(span.path) as file:
            file.seek(span.offset)
            raw = Hashing(file, digest, span.length)
            compression = compression_of(span.format) if self.compressible else ""
            with decompressed(raw, compression) as stream:
                try:
                    for found in self.records(span, stream):
                        yield self.parsed(found, span, parser)
                except DAMAGE:
                    # The digest is that of all bytes, whichever of them are damaged.
                    raw.drain()
                    raise
            # The digest covers the whole range, although a reader may stop before its end.
            raw.drain()

    def parsed(self, found: Found | Bad, span: InputRange, parser: RecordParser) -> Any:
        """Return what the parser makes of a record, with its location where it is bad."""
        if isinstance(found, Bad):
            return found
        result = (
            parser.parse_record(found.values, span, found.place)
            if found.text is None
            else parser.parse_text(found.text, found.values, span, found.place)
        )
        if isinstance(result, Bad):
            return replace(result, where=self.location(span, found.place.number))
        return result

    def range_bytes(self, span: InputRange) -> Iterator[bytes]:
        """Yield the bytes of which reading takes the digest, without parsing them."""
        with open_input(span.path) as file:
            file.seek(span.offset)
            yield from pieces(file, span.length)

    def location(self, span: InputRange, number: int | None) -> str:
        """Return the location of line or row `number` of an input range, for a message.

        Counting lines reads the file up to the range, which is done for bad records only.
        """
        if number is None:
            return span.name
        return f"{span.name}:{_first_line(span) + number}"


def pieces(file: BinaryIO, length: int) -> Iterator[bytes]:
    """Yield the next `length` bytes of a file, or those that are left."""
    while length and (content := file.read(min(READ_BYTES, length))):
        yield content
        length -= len(content)


@lru_cache(maxsize=64)
def _first_line(span: InputRange) -> int:
    return first_line_number(span)


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
