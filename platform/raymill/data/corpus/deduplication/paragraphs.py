"""Repeated paragraphs: of equal ones among all documents that are kept, only the first stays.

A paragraph is a line of at least `paragraph_words` words, whose words are compared as `words.py` reads them.
Each unit writes the keys of its paragraphs, sorted; ranges of keys are collected from all units; then units
with repeated paragraphs are written again, without these and without documents of which nothing is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from raymill.data.corpus.bitmap import Keep, read_bitmap
from raymill.data.corpus.deduplication.settings import FOLDER, DeduplicationSettings, slice_bounds
from raymill.data.corpus.deduplication.sorted_rows import (
    Rows,
    read_partitions,
    sorted_rows,
    sorted_unique,
)
from raymill.data.corpus.deduplication.words import hash_words
from raymill.data.corpus.documents import DocumentsWriter, read_batches, read_documents
from raymill.data.corpus.stages import UnitFiles
from raymill.durable import JsonObject

# A place is row · 2³² + line.
PARAGRAPH = np.dtype([("key", "<u8"), ("place", "<u8")])
REPEATED = np.dtype([("unit", "<u8"), ("place", "<u8")])
# Folder of the files that are written again, next to that of the documents.
UNIQUE_FOLDER = "unique"
_LINE_BITS = 32
_GAPS = re.compile(r"\n{3,}")
# Documents hashed at once.
_BATCH = 256


def write_paragraphs(unit: int, settings: DeduplicationSettings, files: UnitFiles) -> JsonObject:
    """Write the keys of a unit's paragraphs, each once, and the places of those that repeat one of them."""
    name = settings.documents[unit].unit
    found = [np.zeros(0, dtype=PARAGRAPH), *_paragraphs(unit, settings, files)]
    paragraphs = sorted_unique(np.concatenate(found), ("key", "place"))
    again = np.zeros(len(paragraphs), dtype=np.bool_)
    again[1:] = paragraphs["key"][1:] == paragraphs["key"][:-1]
    with sorted_rows(
        files.new(f"{FOLDER}/paragraphs/{name}.bin"),
        bounds=slice_bounds(),
        run_bytes=paragraphs.nbytes,
        compact=lambda rows: rows,
    ) as writer:
        writer.add(paragraphs[~again])
    files.new(f"{FOLDER}/repeated-here/{name}.bin").write_bytes(
        paragraphs["place"][again].tobytes()
    )
    return {"keys": writer.rows, "paragraphs": len(paragraphs)}


def group_paragraphs(
    item: tuple[int, int], settings: DeduplicationSettings, files: UnitFiles
) -> JsonObject:
    """Write the places of a range's paragraphs that an earlier unit has, for each unit."""
    keys, units, places = ([np.zeros(0, dtype=np.uint64)] for _ in range(3))
    for unit, file in enumerate(settings.stored["paragraphs"]):
        for rows in read_partitions(files, file, PARAGRAPH, *item):
            keys.append(rows["key"].astype(np.uint64))
            units.append(np.full(len(rows), unit, dtype=np.uint64))
            places.append(rows["place"].astype(np.uint64))
    key = np.concatenate(keys)
    # The sort is stable, so the earliest unit comes first.
    order = np.argsort(key, kind="stable")
    again = order[1:][key[order][1:] == key[order][:-1]]
    repeated = np.empty(len(again), dtype=REPEATED)
    repeated["unit"] = np.concatenate(units)[again]
    repeated["place"] = np.concatenate(places)[again]
    with sorted_rows(
        files.new(f"{FOLDER}/repeated/{item[0]:04d}-{item[1]:04d}.bin"),
        bounds=np.arange(settings.units, dtype=np.uint64),
        run_bytes=settings.config.memory_bytes // 8,
        compact=partial(sorted_unique, fields=("unit", "place")),
    ) as writer:
        writer.add(repeated)
    return {"repeated": writer.rows}


def cut_paragraphs(unit: int, settings: DeduplicationSettings, files: UnitFiles) -> JsonObject:
    """Write a unit's documents again if there is anything to cut.

    Returns:
        `cut` paragraphs and `emptied` documents; `rows` and `text_bytes` of the new file.
    """
    here = np.fromfile(files.read(settings.stored["repeated-here"][unit]), dtype=np.uint64)
    places = [here]
    for file in settings.stored["repeated"]:
        for rows in read_partitions(files, file, REPEATED, unit, unit + 1):
            places.append(rows["place"].astype(np.uint64))
    cuts = np.unique(np.concatenate(places))
    if not len(cuts):
        return {"cut": 0, "emptied": 0}
    documents = settings.documents[unit]
    keep = _kept(unit, settings, files)
    bounds = np.searchsorted(cuts >> np.uint64(_LINE_BITS), np.arange(documents.rows + 1))
    lines = (cuts & np.uint64(2**_LINE_BITS - 1)).astype(np.int64)
    emptied = 0
    path = files.new(f"{UNIQUE_FOLDER}/{documents.unit}.parquet")
    with DocumentsWriter(path) as writer:
        source = read_documents(files.read(settings.documents[unit].stored))
        for row, document in enumerate(source):
            if not keep[row]:
                continue
            cut = set(lines[bounds[row] : bounds[row + 1]].tolist())
            text = without_lines(document.text, cut) if cut else document.text
            if cut and not text:
                emptied += 1
            else:
                writer.add(replace(document, text=text))
    return {
        "cut": len(cuts),
        "emptied": emptied,
        "rows": writer.rows,
        "text_bytes": writer.text_bytes,
    }


def without_lines(text: str, numbers: set[int]) -> str:
    """Return a text without some of its lines; where many went, one empty line is left."""
    rest = [line for number, line in enumerate(text.split("\n")) if number not in numbers]
    return _GAPS.sub("\n\n", "\n".join(rest)).strip()


def _kept(unit: int, settings: DeduplicationSettings, files: UnitFiles) -> Keep:
    """Return which documents earlier stages kept; all where there were none."""
    rows = settings.documents[unit].rows
    if "keep" not in settings.stored:
        return np.ones(rows, dtype=np.bool_)
    return read_bitmap(files.read(settings.stored["keep"][unit]), rows)


def _paragraphs(unit: int, settings: DeduplicationSettings, files: UnitFiles) -> Iterator[Rows]:
    """Yield the paragraphs of a unit's documents that are kept, batch by batch."""
    keep = _kept(unit, settings, files)
    row = 0
    for group in read_batches(files.read(settings.documents[unit].stored), ["text"]):
        for begin in range(0, group.num_rows, _BATCH):
            texts = group.column(0).slice(begin, _BATCH).to_pylist()
            yield _batch_paragraphs(texts, row, keep, settings.config.paragraph_words)
            row += len(texts)


def _batch_paragraphs(texts: list[str], first: int, keep: Keep, words: int) -> Rows:
    lines: list[str] = []
    rows, counts = [], []
    for row, text in enumerate(texts, first):
        if keep[row]:
            split = text.split("\n")
            lines += split
            rows.append(row)
            counts.append(len(split))
    hashed = hash_words(lines)
    long = np.flatnonzero(np.diff(hashed.starts) >= words)
    count = np.array(counts, dtype=np.int64)
    number = np.arange(len(lines)) - np.repeat(np.cumsum(count) - count, count)
    place = (np.repeat(np.array(rows, dtype=np.int64), count) << _LINE_BITS) | number
    found = np.empty(len(long), dtype=PARAGRAPH)
    found["key"] = hashed.whole()[long]
    found["place"] = place[long]
    return found
