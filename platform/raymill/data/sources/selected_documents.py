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
from numpy.typing import NDArray

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
        for document in selected_documents(Path(span.path)):
            digest.update(document.place.sha256)
            yield document

    def range_bytes(self, span: InputRange) -> Iterator[bytes]:
        # The name of the range stands for the texts; what they were made of is enough here.
        for _, _, row in _rows(Path(span.path), ["sha256"]):
            yield row["sha256"]

    def location(self, span: InputRange, number: int | None) -> str:
        return span.name if number is None else f"{span.name}, row {number}"


def selected_documents(path: Path, wanted: NDArray[np.bool_] | None = None) -> Iterator[Document]:
    """Yield the selected documents of a file, or those of them that a mask over its rows marks; the number
    of their place is their row."""
    for number, split, row in _rows(path, _COLUMNS, wanted):
        place = Place(row["offset"], row["length"], row["sha256"], number)
        yield Document(
            SPLITS[split],
            row["text"],
            place,
            row["source"],
            row["url"],
            row["language"],
            file=row["file"],
        )


def _rows(
    path: Path, columns: list[str], wanted: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (number, split, values) of selected rows."""
    try:
        raw_selection = read_bytes(path.parent.parent / selection_path(path.stem))
        selection = np.frombuffer(raw_selection, dtype=np.uint8)
        chosen = selection != LEFT_OUT
        chosen = chosen if wanted is None else chosen & wanted
        with opened(path) as raw, pq.ParquetFile(raw, page_checksum_verification=True) as file:
            if len(selection) != file.metadata.num_rows:
                raise DataError(
                    f"{selection_path(path.stem)} has {len(selection)} entries for "
                    f"{file.metadata.num_rows} documents; prepare the corpus again."
                )
            first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                mask = chosen[first : first + rows]
                numbers = first + np.flatnonzero(mask)
                if len(numbers):
                    table = file.read_row_group(group, columns=columns, use_threads=False)
                    values = table.filter(pa.array(mask)).to_pylist()
                    splits = selection[numbers].tolist()
                    yield from zip(numbers.tolist(), splits, values, strict=True)
                first += rows
    except MISSING as error:
        raise DataError(f"{error.filename} is missing; prepare the corpus again.") from None
    except pa.ArrowException as error:
        raise DataError(f"{path} is damaged ({error}); prepare the corpus again.") from error
