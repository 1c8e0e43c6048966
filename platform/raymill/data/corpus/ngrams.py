"""Word n-grams of a text that occur more than once, found by sorting their hashes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymill.data.corpus.words import Words

# Odd, and otherwise arbitrary: the golden ratio's first 64 bits.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Repeated:
    """n-grams of a text that occur more than once.

    `positions` are the words that they begin at, ascending; `ids` are the same for equal n-grams.
    """

    n: int
    positions: NDArray[np.int64]
    ids: NDArray[np.int64]

    def top_characters(self, words: Words) -> int:
        """Return the characters that the most frequent n-gram covers, with its spaces; of equally frequent
        ones the first counts."""
        if len(words) < self.n:
            return 0
        first, count = 0, 1
        if len(self.ids):
            counts = np.bincount(self.ids)[self.ids]
            count = int(counts.max())
            first = int(self.positions[int(np.argmax(counts == count))])
        offsets = words.offsets
        return int(offsets[first + self.n] - offsets[first] + self.n - 1) * count

    def duplicate_characters(self, words: Words) -> int:
        """Return the characters in n-grams that were seen before, without spaces and counting no word twice.

        After such an n-gram the search continues behind its last word, which is how datatrove reads table A1.
        """
        offsets = words.offsets
        lengths = (offsets[self.positions + self.n] - offsets[self.positions]).tolist()
        seen: set[int] = set()
        next_word, characters = 0, 0
        for position, gram, length in zip(
            self.positions.tolist(), self.ids.tolist(), lengths, strict=True
        ):
            if position < next_word:
                continue
            if gram in seen:
                characters += length
                next_word = position + self.n
            else:
                seen.add(gram)
        return characters


def repeated_ngrams(words: Words, longest: int) -> Iterator[Repeated]:
    """Yield the repeated n-grams for n = 2, 3, … `longest`.

    An n-gram occurs more than once only if the shorter one at its beginning does, so few are left to sort soon.
    """
    positions = np.arange(len(words))
    hashes = words.hashes
    for n in range(2, longest + 1):
        fits = int(np.searchsorted(positions, len(words) - n, side="right"))
        positions = positions[:fits]
        hashes = hashes[:fits] * _MULTIPLIER + words.hashes[positions + (n - 1)]
        ids = occurring_again(hashes)
        again = ids >= 0
        positions, hashes = positions[again], hashes[again]
        yield Repeated(n, positions, ids[again])


def occurring_again(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return for each value a number that equal values share, and -1 for one that occurs once."""
    ids = np.full(len(values), -1)
    order = np.argsort(values)
    ordered = values[order]
    equal = ordered[1:] == ordered[:-1]
    if equal.any():
        begins = np.concatenate([[True], ~equal])
        ends = np.concatenate([~equal, [True]])
        alone = begins & ends
        ids[order] = np.where(alone, -1, np.cumsum(begins))
    return ids


def hashed_windows(values: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Return the hash of every window of n values."""
    windows = max(len(values) - n + 1, 0)
    hashes = values[:windows]
    for shift in range(1, n):
        hashes = hashes * _MULTIPLIER + values[shift : shift + windows]
    return hashes
