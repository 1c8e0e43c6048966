"""Last stage of a corpus: for each document of a unit, the split it belongs to, or that it is left out.

The bitmaps of earlier stages are combined, and documents are held out by a hash of their group, or else of
their text. Duplicates have one document left, whose text stands for all of them, so that a cluster is never
divided among the splits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymill.data.corpus.bitmap import read_bitmap
from raymill.data.corpus.deduplication.settings import text_digest
from raymill.data.corpus.documents import DocumentsFile, read_batches
from raymill.data.corpus.stages import UnitFiles
from raymill.data.corpus.store import StoredFile
from raymill.data.sources.selected_documents import HELD_OUT, LEFT_OUT, TRAINED, selection_path
from raymill.data.store.split import is_held_out
from raymill.durable import JsonObject

VERSION = 1


@dataclass(frozen=True)
class SelectionItem:
    """Unit to select from: its documents, and the bitmaps that each must be set in."""

    documents: DocumentsFile
    bitmaps: tuple[StoredFile, ...]


@dataclass(frozen=True)
class SelectionSettings:
    """Settings that all units share: the held-out share, and the seed of the hash that chooses it."""

    fraction: float
    seed: int


def select_unit(item: SelectionItem, settings: SelectionSettings, files: UnitFiles) -> JsonObject:
    """Write `selection/<unit>.u8`, a byte for each document.

    Returns:
        `train` and `held_out`: documents and bytes of text of both splits, as [documents, bytes].
    """
    documents = item.documents
    keep = np.ones(documents.rows, dtype=np.bool_)
    for bitmap in item.bitmaps:
        keep &= read_bitmap(files.read(bitmap), documents.rows)
    chosen = np.full(documents.rows, LEFT_OUT, dtype=np.uint8)
    sizes = np.zeros(documents.rows, dtype=np.int64)
    row = 0
    for batch in read_batches(files.read(documents.stored), ["text", "group"]):
        for text, group in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if keep[row]:
                name = f"group:{group}" if group else text_digest(text).hex()
                held_out = documents.held_out or is_held_out(name, settings.fraction, settings.seed)
                chosen[row] = HELD_OUT if held_out else TRAINED
                sizes[row] = len(text.encode())
            row += 1
    files.new(selection_path(documents.unit)).write_bytes(chosen.tobytes())
    return {
        "train": _totals(chosen == TRAINED, sizes),
        "held_out": _totals(chosen == HELD_OUT, sizes),
    }


def _totals(rows: NDArray[np.bool_], sizes: NDArray[np.int64]) -> list[int]:
    return [int(rows.sum()), int(sizes[rows].sum())]
