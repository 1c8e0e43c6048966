"""Documents of a corpus as a format of input: the rows of a file that a selection assigns to a split.

The file is `documents/<unit>.parquet` of a corpus, its selection `selection/<unit>.u8` next to it, with a
byte for each row. An input range's name holds a digest of both, so that times of files don't matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymill.data.sources.documents import Document
from raymill.data.sources.format import Format, Place, RecordParser
from raymill.data.sources.inputs import InputRange
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.errors import DataError
from raymill.reading import MISSING, opened, read_bytes

LEFT_OUT, TRAINED, HELD_OUT = 0, 1, 2
SPLITS = {TRAINED: TRAIN, HELD_OUT: VALIDATION}
_COLUMNS = ["text", "source", "url", "language", "file", "offset", "length", "sha256"]


def selection_path(unit: str) -> str:
    """Return the path of a unit's selection within the corpus folder."""
    return f"selection/{unit}.u8"


class SelectedDocuments(Format):
    """Reader of documents whose text has been chosen already; nothing is parsed."""

    name: ClassVar[str] = "documents"
    # Digests in the ranges' names stand for the files, not their times.
    is_embedded: ClassVar[bool] = True

    def read(self, span: InputRange, parser: RecordParser, digest: hashlib._Hash) -> Iterator[Any]:
        for document in _selected(Path(span.path)):
            digest.update(document.text.encode())
            yield document

    def range_bytes(self, span: InputRange) -> Iterator[bytes]:
        for document in _selected(Path(span.path)):
            yield document.text.encode()


def _selected(path: Path) -> Iterator[Document]:
    try:
        selection = read_bytes(path.parent.parent / selection_path(path.stem))
        with opened(path) as raw, pq.ParquetFile(raw, page_checksum_verification=True) as file:
            if len(selection) != file.metadata.num_rows:
                raise DataError(
                    f"{selection_path(path.stem)} has {len(selection)} entries for "
                    f"{file.metadata.num_rows} documents; prepare the corpus again."
                )
            row = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=_COLUMNS, use_threads=False)
                yield from _documents(table, selection[row : row + table.num_rows])
                row += table.num_rows
    except MISSING as error:
        raise DataError(f"{error.filename} is missing; prepare the corpus again.") from None
    except pa.ArrowException as error:
        raise DataError(f"{path} is damaged ({error}); prepare the corpus again.") from error


def _documents(table: pa.Table, selection: bytes) -> Iterator[Document]:
    splits = np.frombuffer(selection, dtype=np.uint8)
    rows = table.filter(pa.array(splits != LEFT_OUT)).to_pylist()
    for split, row in zip(splits[splits != LEFT_OUT].tolist(), rows, strict=True):
        place = Place(row["offset"], row["length"], row["sha256"])
        yield Document(
            SPLITS[split],
            row["text"],
            place,
            row["source"],
            row["url"],
            row["language"],
            file=row["file"],
        )
