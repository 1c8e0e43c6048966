"""Texts of evaluation sets, and the n-grams of words by which documents that contain them are recognized."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raymill.data.corpus.deduplication.words import hash_words
from raymill.data.sources.files import find_files
from raymill.data.sources.format import Bad, Place, Record
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.records import read_records
from raymill.data.store.hashing import Ints, Words
from raymill.durable import sha256_json
from raymill.errors import DataError

# Characters of a text by which a hit names it.
_SHOWN = 120


@dataclass(frozen=True)
class EvaluationNgrams:
    """Distinct n-grams of evaluation texts, sorted by hash, and for each the text that has it first.

    `names` are files and numbers of records, `starts` the beginnings of the texts; `short` texts have fewer
    than `n` words, and are looked for by nothing.
    """

    n: int
    hashes: Words
    text: Ints
    names: tuple[str, ...]
    starts: tuple[str, ...]
    short: int

    @property
    def digest(self) -> str:
        """Digest of what documents are compared with."""
        content = hashlib.sha256(self.hashes.tobytes() + self.text.tobytes()).hexdigest()
        return sha256_json([self.n, content, self.names])


def read_evaluation_texts(patterns: Sequence[str], n: int) -> EvaluationNgrams:
    """Read every text in files of any format; of a record, all of its texts.

    Raises:
        DataError: a pattern matches nothing, a record can't be read, or no text has n words.
        StorageError: a file can't be read.
    """
    names: list[str] = []
    texts: list[str] = []
    for span in find_files(patterns, "data.decontamination.path"):
        for number, record in enumerate(read_records(span, _EveryText(), hashlib.sha256()), 1):
            if isinstance(record, Bad):
                raise DataError(f"data.decontamination.path: {record.where}: {record.why}")
            texts += record
            names += [f"{span.name}:{number}"] * len(record)
    words = hash_words(texts)
    long = np.flatnonzero(np.diff(words.starts) >= n)
    if not len(long):
        raise DataError(
            f"data.decontamination.path: none of {len(texts)} texts has data.decontamination.ngram={n} "
            "words; choose a smaller n."
        )
    grams, starts = words.ngrams(n)
    owners = np.repeat(np.arange(len(texts)), np.diff(starts))
    inside = np.isin(owners, long)
    hashes, first = np.unique(grams[inside], return_index=True)
    return EvaluationNgrams(
        n=n,
        hashes=hashes,
        text=owners[inside][first],
        names=tuple(names),
        starts=tuple(" ".join(text[: 2 * _SHOWN].split())[:_SHOWN] for text in texts),
        short=len(texts) - len(long),
    )


class _EveryText:
    """Parser of a record into all of the texts in it."""

    def parse_text(self, text: str, values: Record, span: InputRange, place: Place) -> list[str]:
        """Return the text alone."""
        return [text]

    def parse_record(self, record: Record, span: InputRange, place: Place) -> list[str]:
        """Return all texts at any depth."""
        return [*_texts_in(record)]

    def columns(self, stored: pa.Schema, span: InputRange) -> list[str] | Bad:
        """Return all columns."""
        return list(stored.names)


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts_in(inner)
