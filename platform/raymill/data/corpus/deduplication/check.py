"""Third stage: candidates are compared by their signatures, in two steps.

Signatures of all documents fit in no memory, and reading single ones is slow; so each unit sends the
signatures of its documents to the units of their smaller partners, which compare them with their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from raymill.data.corpus.deduplication.components import write_edges
from raymill.data.corpus.deduplication.minhash import Bytes
from raymill.data.corpus.deduplication.settings import (
    CANDIDATE,
    FOLDER,
    LOCAL_EDGE,
    DeduplicationSettings,
)
from raymill.data.corpus.deduplication.sorted_rows import (
    Rows,
    document_ids,
    read_partitions,
    rows_of,
    sorted_rows,
    sorted_unique,
    unit_bounds,
)
from raymill.data.corpus.stages import UnitFiles
from raymill.durable import JsonObject

# Candidates that get their signatures at once.
_SENT_AT_ONCE = 1 << 15


def send_signatures(unit: int, settings: DeduplicationSettings, files: UnitFiles) -> JsonObject:
    """Write a unit's candidates with the greater document's signature, for the unit of the smaller."""
    signatures = _signatures(unit, settings, files)
    with sorted_rows(
        files.new(f"{FOLDER}/sent/{settings.documents[unit].unit}.bin"),
        bounds=unit_bounds(settings.units),
        run_bytes=settings.config.memory_bytes // 8,
        compact=partial(sorted_unique, fields=("low", "high")),
    ) as writer:
        for pairs in _candidates(unit, settings, files):
            for begin in range(0, len(pairs), _SENT_AT_ONCE):
                some = pairs[begin : begin + _SENT_AT_ONCE]
                sent = np.empty(len(some), dtype=_sent_row(settings))
                sent["low"], sent["high"] = some["low"], some["high"]
                sent["signature"] = signatures[rows_of(some["high"])]
                writer.add(sent)
    return {"pairs": writer.rows}


def check_unit(unit: int, settings: DeduplicationSettings, files: UnitFiles) -> JsonObject:
    """Write the edges from a unit's documents to greater ones that duplicate them."""
    signatures = _signatures(unit, settings, files)
    path = files.new(f"{FOLDER}/edges/{settings.documents[unit].unit}.bin")
    checked = 0
    with write_edges(path, settings) as writer:
        local = np.fromfile(files.read(settings.stored["local"][unit]), dtype=LOCAL_EDGE)
        writer.connect(document_ids(unit, local["low"]), document_ids(unit, local["high"]))
        for file in settings.stored["sent"][unit:]:
            for sent in read_partitions(files, file, _sent_row(settings), unit, unit + 1):
                own = signatures[rows_of(sent["low"])]
                same = settings.are_duplicates(own, sent["signature"])
                writer.connect(sent["low"][same], sent["high"][same])
                checked += len(sent)
    return {"edges": writer.rows, "checked": checked}


def _sent_row(settings: DeduplicationSettings) -> np.dtype[np.void]:
    signature = ("signature", "u1", (settings.signature_bytes,))
    return np.dtype([("low", "<u8"), ("high", "<u8"), signature])


def _signatures(unit: int, settings: DeduplicationSettings, files: UnitFiles) -> Bytes:
    content = np.fromfile(files.read(settings.stored["signatures"][unit]), dtype=np.uint8)
    return content.reshape(-1, settings.signature_bytes)


def _candidates(unit: int, settings: DeduplicationSettings, files: UnitFiles) -> Iterator[Rows]:
    """Yield a unit's candidates, without most repetitions from several bands."""
    waiting: list[Rows] = []
    limit, count = settings.config.memory_bytes // (8 * CANDIDATE.itemsize), 0
    for file in settings.stored["candidates"]:
        for rows in read_partitions(files, file, CANDIDATE, unit, unit + 1):
            waiting.append(rows)
            count += len(rows)
            if count >= limit:
                unique = sorted_unique(np.concatenate(waiting), ("low", "high"))
                # What repeats little would be sorted again and again.
                if len(unique) > limit // 2:
                    yield unique
                    unique = unique[:0]
                waiting, count = [unique], len(unique)
    if count:
        yield sorted_unique(np.concatenate(waiting), ("low", "high"))
