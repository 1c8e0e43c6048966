"""Takedown: documents that must not be in the corpus, by URL, digest or place, left out through a bitmap.

A list has one entry a line: a URL, the sha256 of a record in hexadecimal, or its place `file@offset`, as the
lineage of a row states it. Empty lines and those that begin with `#` don't count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymill.data.corpus.bitmap import write_bitmap
from raymill.data.corpus.documents import DocumentsFile, read_batches
from raymill.data.corpus.stages import Stage, StageUnit, UnitFiles, run_stage
from raymill.data.corpus.store import CorpusStore, StoredFile
from raymill.data.sources.globs import matches
from raymill.durable import JsonObject, sha256_json
from raymill.errors import DataError
from raymill.reading import is_folder, read_text

VERSION = 1
_STAGE = "takedown"
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class TakedownList:
    """Documents to leave out."""

    urls: frozenset[str]
    digests: frozenset[bytes]
    places: frozenset[tuple[str, int]]

    @property
    def digest(self) -> str:
        """Digest of the entries, in whatever order they were listed."""
        return sha256_json(
            [
                sorted(self.urls),
                sorted(digest.hex() for digest in self.digests),
                sorted(self.places),
            ]
        )


@dataclass(frozen=True)
class Takedown:
    """Result of a takedown: a bitmap for each unit, and the number of documents left out by their source."""

    keep: tuple[StoredFile, ...]
    dropped: dict[str, int]


def read_takedown(patterns: Sequence[str]) -> TakedownList:
    """Read the lists of `data.takedown`.

    Raises:
        DataError: a file is missing, or a line is none of the three kinds.
        StorageError: a file can't be read.
    """
    urls, digests, places = set(), set(), set()
    for pattern in patterns:
        paths = sorted(matches(pattern)[1])
        if not paths:
            raise DataError(f"data.takedown: {pattern} matches nothing")
        for path in paths:
            if is_folder(path):
                raise DataError(f"data.takedown: {path} is a folder; name its files")
            for number, line in enumerate(read_text(path).splitlines(), 1):
                entry = line.strip()
                file, at, offset = entry.rpartition("@")
                if not entry or entry.startswith("#"):
                    continue
                if "://" in entry:
                    urls.add(entry)
                elif _DIGEST.fullmatch(entry):
                    digests.add(bytes.fromhex(entry))
                elif at and file and offset.isdecimal():
                    places.add((file, int(offset)))
                else:
                    raise DataError(
                        f"{path}:{number}: expected a URL, a sha256 of 64 digits, or file@offset; found "
                        f"{entry[:80]!r}"
                    )
    return TakedownList(frozenset(urls), frozenset(digests), frozenset(places))


def take_down(
    store: CorpusStore,
    documents: Sequence[DocumentsFile],
    listed: TakedownList,
    *,
    tasks: int | None = None,
) -> Takedown:
    """Find the listed documents of all units. Raises DataError where a file of documents is damaged."""
    stage = Stage(_STAGE, VERSION, {"list": listed.digest})
    units = [StageUnit(file.unit, file.sha256, file) for file in documents]
    found = run_stage(store, stage, units, _take_down_unit, listed, tasks=tasks)
    outcomes = sorted(found, key=lambda outcome: outcome.index)
    dropped: dict[str, int] = {}
    for file, outcome in zip(documents, outcomes, strict=True):
        if outcome.facts["dropped"]:
            dropped[file.source] = dropped.get(file.source, 0) + outcome.facts["dropped"]
    return Takedown(tuple(outcome.file(".bits") for outcome in outcomes), dropped)


def _take_down_unit(item: DocumentsFile, listed: TakedownList, files: UnitFiles) -> JsonObject:
    path = files.read(item.stored)
    keep = np.ones(item.rows, dtype=np.bool_)
    row = 0
    for batch in read_batches(path, ["url", "sha256", "file", "offset"]):
        columns: list[list[Any]] = [column.to_pylist() for column in batch.columns]
        for url, digest, file, offset in zip(*columns, strict=True):
            if url in listed.urls or digest in listed.digests or (file, offset) in listed.places:
                keep[row] = False
            row += 1
    write_bitmap(files.new(f"{_STAGE}/{item.unit}.bits"), keep)
    return {"dropped": int(np.count_nonzero(~keep))}
