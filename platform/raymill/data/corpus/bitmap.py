"""Bitmaps of a unit's documents: a bit for each row of its file, set where the document is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raymill.errors import DataError
from raymill.reading import read_bytes

Keep = NDArray[np.bool_]


def write_bitmap(path: Path, keep: Keep) -> None:
    """Write a bitmap; the first row is the lowest bit of the first byte."""
    path.write_bytes(np.packbits(keep, bitorder="little").tobytes())


def read_bitmap(path: Path, rows: int) -> Keep:
    """Read the bitmap of a unit with so many documents.

    Raises:
        DataError: it is of another length.
        StorageError: it can't be read.
    """
    packed = np.frombuffer(read_bytes(path), dtype=np.uint8)
    if len(packed) != -(-rows // 8):
        raise DataError(
            f"{path} has {len(packed)} bytes, expected {-(-rows // 8)} for {rows} documents; delete it and "
            "prepare the corpus again."
        )
    return np.unpackbits(packed, count=rows, bitorder="little").astype(np.bool_)
