"""Tables: Parquet files, cut at row groups, and Arrow streams; a row is a record."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from raymill.data.sources.format import Bad, DamagedInputError, Format, Found, Place, RecordParser
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.json_values import UnusableRecordError, check_record
from raymill.data.sources.raw_streams import Hashing, open_input, parquet_metadata
from raymill.data.sources.table_values import plain_value
from raymill.errors import DataError

PARQUET_ROWS = 256
# Errors that Arrow raises for single values. Damage shows earlier, when a batch is read.
_UNCONVERTIBLE = (
    ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError, pa.ArrowException,
)  # fmt: skip


class _Table(Format):
    text_only: ClassVar[bool] = False

    def read(self, span: InputRange, parser: RecordParser, digest: hashlib._Hash) -> Iterator[Any]:
        with open_input(span.path) as raw:
            raw.seek(span.offset)
            # Tables are read in random order, so their bytes are hashed in a pass of their own.
            Hashing(raw, digest, span.length).drain()
        for found in self._rows(span, parser):
            yield self.parsed(found, span, parser)

    def _rows(self, span: InputRange, parser: RecordParser) -> Iterator[Found | Bad]:
        raise NotImplementedError

    def location(self, span: InputRange, number: int | None) -> str:
        assert number is not None, "rows are counted"
        return f"{span.name}, row {self._first_row(span) + number}"

    def _first_row(self, span: InputRange) -> int:
        """Return the number of a range's first row, counted from the start of the file."""
        return 0

    def _found(
        self,
        span: InputRange,
        wanted: list[str] | Bad,
        batches: Iterable[pa.RecordBatch],
        rows: int,
    ) -> Iterator[Found | Bad]:
        """Yield the rows of all batches; `rows` is their number."""
        if not rows:
            yield Bad(span.name, "the table has no rows")
            return
        first = self._first_row(span)
        if isinstance(wanted, Bad):
            where = f"{span.name}, rows {first} to {first + rows - 1}"
            yield replace(wanted, where=where, count=rows)
            return
        number = 0
        for batch in batches:
            columns = {name: batch.column(name) for name in wanted}
            for index in range(batch.num_rows):
                record = _row(columns, index)
                if isinstance(record, Bad):
                    yield replace(record, where=self.location(span, number))
                else:
                    yield Found(record, Place(first + number, 1, b"", number))
                number += 1


class Parquet(_Table):
    """Parquet files; units hold whole row groups."""

    name: ClassVar[str] = "parquet"
    endings: ClassVar[tuple[str, ...]] = ("parquet",)

    def cut(self, file: InputRange, unit_bytes: int) -> Iterator[InputRange]:
        if not file.file_bytes:
            # The reader reports the empty file.
            yield file
            return
        metadata = _checked_metadata(file)
        groups = range(metadata.num_row_groups)
        spans = [_row_group_range(metadata.row_group(group)) for group in groups]
        if not metadata.num_rows or not metadata.num_columns:
            # The reader reports the empty table.
            yield replace(file, groups=len(spans))
            return
        first, range_start, end = 0, -1, 0
        for group, (start, stop) in enumerate(spans):
            # A damaged footer may state positions that would be read as other data.
            if not 0 <= max(start, end) <= stop <= file.file_bytes:
                raise DamagedInputError(
                    f"{file.path} can't be read as Parquet: row group {group} lies from byte {start} to "
                    f"{stop} of {file.file_bytes}, past the end or overlapping another one."
                )
            range_start = start if range_start < 0 else range_start
            end = stop
            if end - range_start >= unit_bytes or group == len(spans) - 1:
                yield replace(
                    file,
                    offset=range_start,
                    length=end - range_start,
                    first_group=first,
                    groups=group + 1 - first,
                )
                first, range_start = group + 1, -1

    def _rows(self, span: InputRange, parser: RecordParser) -> Iterator[Found | Bad]:
        groups = range(span.first_group, span.first_group + span.groups)
        metadata = _checked_metadata(span)
        with (
            open_input(span.path) as source,
            pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True) as file,
        ):
            rows = sum(metadata.row_group(group).num_rows for group in groups)
            wanted = _columns_to_read(file.schema_arrow, span, parser)
            columns = None if isinstance(wanted, Bad) else wanted
            batches = file.iter_batches(PARQUET_ROWS, row_groups=list(groups), columns=columns)
            yield from self._found(span, wanted, batches, rows)

    def _first_row(self, span: InputRange) -> int:
        return _rows_before(span)


@lru_cache(maxsize=64)
def _rows_before(span: InputRange) -> int:
    if not span.first_group:
        return 0
    metadata = parquet_metadata(span.path)
    return sum(metadata.row_group(group).num_rows for group in range(span.first_group))


class ArrowStream(_Table):
    """Streams as `datasets.save_to_disk` writes them."""

    name: ClassVar[str] = "arrow"
    endings: ClassVar[tuple[str, ...]] = ("arrow",)

    def _rows(self, span: InputRange, parser: RecordParser) -> Iterator[Found | Bad]:
        with open_input(span.path) as source, pa.ipc.open_stream(source) as stream:
            rows = sum(batch.num_rows for batch in stream)
        with open_input(span.path) as source, pa.ipc.open_stream(source) as stream:
            wanted = _columns_to_read(stream.schema, span, parser)
            yield from self._found(span, wanted, stream, rows)


def _checked_metadata(file: InputRange) -> pq.FileMetaData:
    """Return the metadata of a file, before anything else of it is parsed.

    Raises:
        DamagedInputError: it has none, or names an extension type, whose code isn't run.
    """
    try:
        return parquet_metadata(file.path)
    except UnicodeDecodeError as error:
        raise DamagedInputError(
            f"{file.path} can't be read as Parquet: the name of a column isn't UTF-8 ({error.reason}); "
            "rewrite the file with another name."
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise DamagedInputError(f"{file.path} can't be read as Parquet: {error}") from error
    except DataError as error:
        raise DamagedInputError(str(error)) from error


def _row_group_range(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Return the first byte of a row group's column chunks, and the byte after the last."""
    columns = [group.column(index) for index in range(group.num_columns)]
    starts = [
        min(filter(None, (column.dictionary_page_offset, column.data_page_offset)), default=0)
        for column in columns
    ]
    stops = [s + column.total_compressed_size for s, column in zip(starts, columns, strict=True)]
    return min(starts, default=0), max(stops, default=0)


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
