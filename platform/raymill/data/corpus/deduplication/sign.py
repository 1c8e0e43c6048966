"""First stage: signatures of a unit's documents, their keys, and the duplicates inside the unit.

A key that many documents of the unit share leaves only a few rows: those that a smaller row of the same key
duplicates are connected with it here, so that boilerplate makes no hot spot in later stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raymill.data.corpus.deduplication.minhash import (
    Bytes,
    band_keys,
    minima,
    short_signatures,
)
from raymill.data.corpus.deduplication.settings import (
    DIGEST_BYTES,
    FOLDER,
    KEY_ROW,
    LOCAL_EDGE,
    DeduplicationSettings,
    slice_bounds,
    text_digest,
)
from raymill.data.corpus.deduplication.sorted_rows import SortedRows, sorted_rows, sorted_unique
from raymill.data.corpus.deduplication.words import hash_words
from raymill.data.corpus.documents import read_batches
from raymill.data.corpus.stages import UnitFiles
from raymill.data.store.hashing import Ints, Words
from raymill.durable import JsonObject

# Rows that a key keeps in a unit at most: the smallest, then the smallest that doesn't duplicate it, …
ROWS_PER_KEY = 3
# Documents that are compared with each other here, about 400 bytes each; and those hashed at once.
RUN_DOCUMENTS = 1 << 19
_BATCH = 512
# Pairs compared at once.
_PAIRS = 1 << 14

# Marks a document that has no key in a part.
_NO_KEY = np.uint64(2**64 - 1)


def sign_unit(unit: int, settings: DeduplicationSettings, files: UnitFiles) -> JsonObject:
    """Write a unit's signatures, its sorted keys, and the edges between its own documents."""
    documents = settings.documents[unit]
    first = 0
    with (
        sorted_rows(
            files.new(f"{FOLDER}/keys/{documents.unit}.bin"),
            bounds=slice_bounds(),
            run_bytes=settings.config.memory_bytes // 8,
            compact=partial(sorted_unique, fields=("key", "row")),
        ) as writer,
        files.new(f"{FOLDER}/signatures/{documents.unit}.bin").open("wb") as signatures_stream,
        files.new(f"{FOLDER}/local/{documents.unit}.bin").open("wb") as edges_stream,
    ):
        run: list[tuple[Bytes, Words]] = []
        for texts in _text_batches(files.read(settings.documents[unit].stored)):
            run.append(_signed(texts, settings))
            signatures_stream.write(run[-1][0].tobytes())
            if sum(len(part) for part, _ in run) >= RUN_DOCUMENTS:
                edges_stream.write(_finish_run(run, first, writer, settings).tobytes())
                first += sum(len(part) for part, _ in run)
                run = []
        if run:
            edges_stream.write(_finish_run(run, first, writer, settings).tobytes())
    return {"keys": writer.rows}


def _text_batches(path: Path) -> Iterator[list[str]]:
    """Yield the texts of a file of documents, some at a time."""
    for batch in read_batches(path, ["text"]):
        for begin in range(0, batch.num_rows, _BATCH):
            yield batch.column(0).slice(begin, _BATCH).to_pylist()


def _parts(settings: DeduplicationSettings) -> range:
    """Return the numbers of the parts of a document's keys: the text's, if wanted, and the bands'."""
    return range(int(settings.config.documents) + settings.bands.bands)


def _signed(texts: list[str], settings: DeduplicationSettings) -> tuple[Bytes, Words]:
    """Return signatures, [documents, signature_bytes], and keys, [parts, documents].

    The n-th part's keys lie in the n-th part of all numbers; 2⁶⁴ - 1 is no key.
    """
    digests = np.frombuffer(b"".join(map(text_digest, texts)), dtype=np.uint8)
    columns = [digests.reshape(len(texts), DIGEST_BYTES)]
    keys = []
    if settings.config.documents:
        keys.append(columns[0].view("<u8")[:, :1].T)
    if settings.config.near:
        grams, starts = hash_words(texts).ngrams(settings.config.shingle_words)
        signatures = minima(grams, starts, settings.bands.hashes)
        columns.append(short_signatures(signatures))
        keys.append(band_keys(signatures, settings.bands))
    every = np.concatenate(keys)
    begins = [part * 2**64 // len(every) for part in range(len(every))]
    every = every // np.uint64(len(every)) + np.array(begins, dtype=np.uint64)[:, None]
    if settings.config.near:
        # Documents without words have no n-grams, and duplicate each other only as texts.
        every[int(settings.config.documents) :, np.diff(starts) == 0] = _NO_KEY
    return np.concatenate(columns, axis=1), every


def _finish_run(
    run: list[tuple[Bytes, Words]],
    first: int,
    writer: SortedRows,
    settings: DeduplicationSettings,
) -> NDArray[np.void]:
    """Add the keys of documents from row `first` on; return the edges between them."""
    signatures = np.concatenate([part for part, _ in run])
    keys = np.concatenate([part for _, part in run], axis=1)
    alone = np.ones(len(signatures), dtype=np.bool_)
    found = []
    for part in _parts(settings):
        rows = np.flatnonzero(alone & (keys[part] != _NO_KEY))
        kept, low, high = _representatives(keys[part], rows, signatures, settings)
        if part == 0 and settings.config.documents:
            # Copies have the signature of the first, which stands for them in every band.
            alone[high] = False
        key_rows = np.empty(len(kept), dtype=KEY_ROW)
        key_rows["key"], key_rows["row"] = keys[part][kept], kept + first
        writer.add(key_rows)
        edges = np.empty(len(low), dtype=LOCAL_EDGE)
        edges["low"], edges["high"] = low + first, high + first
        found.append(edges)
    return sorted_unique(np.concatenate(found), ("high", "low"))


def _representatives(
    keys: Words, rows: Ints, signatures: Bytes, settings: DeduplicationSettings
) -> tuple[Ints, Ints, Ints]:
    """Return the rows that stand for their keys, and pairs of duplicates with the same key."""
    pending = rows[np.argsort(keys[rows], kind="stable")]
    kept, lows, highs = [], [], []
    for _ in range(ROWS_PER_KEY):
        ordered = keys[pending]
        opens = np.ones(len(pending), dtype=np.bool_)
        opens[1:] = ordered[1:] != ordered[:-1]
        firsts = pending[opens]
        kept.append(firsts)
        high = pending[~opens]
        low = firsts[np.cumsum(opens) - 1][~opens]
        same = duplicates_among(signatures, low, high, settings)
        lows.append(low[same])
        highs.append(high[same])
        pending = high[~same]
    return np.concatenate(kept), np.concatenate(lows), np.concatenate(highs)


def duplicates_among(
    signatures: Bytes, low: Ints, high: Ints, settings: DeduplicationSettings
) -> NDArray[np.bool_]:
    """Compare pairs of rows of one unit by their signatures."""
    same = np.zeros(len(low), dtype=np.bool_)
    for begin in range(0, len(low), _PAIRS):
        some = slice(begin, begin + _PAIRS)
        same[some] = settings.are_duplicates(signatures[low[some]], signatures[high[some]])
    return same
