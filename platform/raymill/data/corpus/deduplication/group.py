"""Second stage: pairs of documents with the same key, collected for one range of keys from all units."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np

from raymill.data.corpus.deduplication.settings import (
    CANDIDATE,
    FOLDER,
    KEY_ROW,
    SLICES,
    DeduplicationSettings,
)
from raymill.data.corpus.deduplication.sorted_rows import (
    document_ids,
    read_partitions,
    sorted_rows,
    sorted_unique,
    unit_bounds,
)
from raymill.data.corpus.stages import UnitFiles
from raymill.durable import JsonObject

# Bytes of a row while it is grouped: key, id, their order, sorted copies, and candidates.
WORKING_BYTES = 200


def key_ranges(keys: int, memory: int) -> list[tuple[int, int]]:
    """Divide the slices so that a range has about as many keys as the memory allows."""
    count = min(max(1, -(-keys * WORKING_BYTES // memory)), SLICES)
    edges = [SLICES * number // count for number in range(count + 1)]
    return [*itertools.pairwise(edges)]


def group_range(
    item: tuple[int, int], settings: DeduplicationSettings, files: UnitFiles
) -> JsonObject:
    """Write the candidates of a range of keys, for the unit of the greater document each.

    A key's documents are compared with its smallest and with their predecessor: a chain finds those that
    differ from the smallest but not from each other.
    """
    first, end = item
    keys, ids = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.uint64)]
    for unit, file in enumerate(settings.stored["keys"]):
        for rows in read_partitions(files, file, KEY_ROW, first, end):
            keys.append(rows["key"].astype(np.uint64))
            ids.append(document_ids(unit, rows["row"]))
    key, document = np.concatenate(keys), np.concatenate(ids)
    del keys, ids
    order = np.lexsort((document, key))
    key, document = key[order], document[order]
    del order
    again = np.flatnonzero(key[1:] == key[:-1]) + 1
    opens = np.ones(len(key), dtype=np.bool_)
    opens[again] = False
    smallest = document[opens][np.cumsum(opens)[again] - 1] if len(again) else document[:0]
    with sorted_rows(
        files.new(f"{FOLDER}/candidates/{range_name(item)}.bin"),
        bounds=unit_bounds(settings.units),
        run_bytes=settings.config.memory_bytes // 8,
        compact=partial(sorted_unique, fields=("high", "low")),
    ) as writer:
        for low in (smallest, document[again - 1]):
            pairs = np.empty(len(again), dtype=CANDIDATE)
            pairs["low"], pairs["high"] = low, document[again]
            writer.add(pairs)
    return {"candidates": writer.rows}


def range_name(item: tuple[int, int]) -> str:
    """Return the name of a range of slices."""
    return f"{item[0]:04d}-{item[1]:04d}"
