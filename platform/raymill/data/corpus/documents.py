"""Files of documents: what a corpus holds between its stages, one Parquet file a unit.

A row is a document with its origin: the source's name, URL and language ("" while unknown), and its place in
the file that it was read from (`file`, `offset`, `length` and `sha256`, as `sources.format.Place` explains).
`signals` are measurements of cleaning steps; `group` is the value by which documents stay in one split, ""
where each stands for itself. Dropped documents aren't in the file; later stages leave rows out by bitmaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from raymill.data.corpus.store import StoredFile
from raymill.errors import DataError
from raymill.reading import MISSING, opened

SCHEMA = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("signals", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("group", pa.string(), nullable=False),
    ]
)
# A row group ends at the first of the two; it is what a reader holds in memory.
ROW_GROUP_CHARACTERS = 8 * 2**20
ROW_GROUP_ROWS = 8192
# Columns with few different values; a dictionary of texts would only cost time.
_REPEATED = ["source", "language", "file"]


@dataclass(frozen=True)
class CorpusDocument:
    """Row of a file of documents."""

    text: str
    source: str
    url: str
    language: str
    file: str
    offset: int
    length: int
    sha256: bytes
    signals: dict[str, float] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class DocumentsFile:
    """Finished file of a unit's documents. `path` is relative to the corpus folder.

    `bytes` is the file's size, `text_bytes` that of the texts in UTF-8. `held_out` is 1 for the documents
    of `data.validation.path`, all of which belong to the validation split, and else 0.
    """

    path: str
    rows: int
    text_bytes: int
    bytes: int
    sha256: str
    source: str
    held_out: int

    @property
    def stored(self) -> StoredFile:
        """File in the corpus' store."""
        return StoredFile(self.path, self.bytes, self.sha256)

    @property
    def unit(self) -> str:
        """Name of the unit, which doesn't change when other inputs are added."""
        return Path(self.path).stem


class DocumentsWriter:
    """Writer of one file, in row groups of bounded size; a context manager."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(
            path,
            SCHEMA,
            compression="zstd",
            use_dictionary=_REPEATED,
            write_statistics=False,
            write_page_checksum=True,
        )
        self._rows: list[CorpusDocument] = []
        self._characters = 0
        self.rows = self.text_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._write()
        self._writer.close()

    def add(self, document: CorpusDocument) -> None:
        """Write a document, together with those that follow."""
        self._rows.append(document)
        self._characters += len(document.text)
        if self._characters >= ROW_GROUP_CHARACTERS or len(self._rows) >= ROW_GROUP_ROWS:
            self._write()

    def _write(self) -> None:
        if not self._rows:
            return
        columns: dict[str, list[Any]] = {
            name: [getattr(row, name) for row in self._rows] for name in SCHEMA.names
        }
        columns["signals"] = [sorted(signals.items()) for signals in columns["signals"]]
        batch = pa.record_batch(columns, schema=SCHEMA)
        self._writer.write_batch(batch)
        self.rows += len(self._rows)
        self.text_bytes += sum(len(text.encode()) for text in columns["text"])
        self._rows, self._characters = [], 0


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the row groups of a file in order, with some of the columns.

    Raises:
        DataError: the file is missing or damaged.
        StorageError: it can't be read.
    """
    try:
        with opened(path) as raw, pq.ParquetFile(raw, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=list(columns), use_threads=False)
                yield from table.combine_chunks().to_batches()
    except MISSING:
        raise DataError(f"{path} is missing; prepare the corpus again.") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is damaged ({error}); delete it and prepare the corpus again."
        ) from error


def read_documents(path: Path) -> Iterator[CorpusDocument]:
    """Yield all documents of a file, with all of their columns. Raises as `read_batches` does."""
    for batch in read_batches(path, SCHEMA.names):
        for row in batch.to_pylist():
            yield CorpusDocument(**{**row, "signals": dict(row["signals"])})
