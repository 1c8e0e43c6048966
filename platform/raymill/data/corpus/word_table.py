"""Numbers of a text's words, gathered from a table of all pieces seen before, without a loop over words.

Natural text repeats itself: nearly every piece between two spaces was cut and measured in an earlier document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raymill.data.corpus.words import PUNCTUATION, cut_piece

PIECES = 2**18
LONGEST_KEPT = 64

Hashes = NDArray[np.uint64]
Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Words:
    """Words of a text in order, punctuation marks included, as arrays with an element per word.

    `hashes` are the same for equal words in every process; `lengths` are in characters. `is_mark` says that a
    word is punctuation alone, `has_letter` that it has at least one letter.
    """

    hashes: Hashes
    lengths: Lengths
    is_mark: NDArray[np.bool_]
    has_letter: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.hashes)

    @cached_property
    def offsets(self) -> Lengths:
        """Characters before each word and after the last one, spaces not counted."""
        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        return offsets


def word_hash(word: str) -> int:
    """Hash a word to a signed number of 64 bits, the same in every process."""
    encoded = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little", signed=True)


class WordTable(dict[str, int]):
    """Index of each piece of text seen, with the words it consists of.

    It forgets all when it has more than `PIECES`; pieces longer than `LONGEST_KEPT` are measured each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._forget()

    def words(self, pieces: Sequence[str]) -> Words:
        """Return the words of a text's pieces, as `str.split` gives them."""
        if len(self._spans) > PIECES:
            self._forget()
        ids = np.fromiter(map(self.__getitem__, pieces), np.int64, len(pieces))
        first, counts = self._spans.rows()[ids].T
        # Words of piece i stand at first[i], first[i] + 1, …, and are copied to where the pieces before end.
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        hashes, notes = self._words.rows()[
            np.repeat(first - ends + counts, counts) + np.arange(total)
        ].T
        return Words(
            hashes.view(np.uint64), notes >> 2, (notes & _MARK).astype(bool), (notes & _LETTER).astype(bool)
        )  # fmt: skip

    def __missing__(self, piece: str) -> int:
        index, start = len(self._spans), len(self._words)
        for word in cut_piece(piece):
            measured = self._measured.get(word)
            if measured is None:
                measured = self._measured[word] = _measure(word)
            self._words.append(measured)
        self._spans.append((start, len(self._words) - start))
        if len(piece) <= LONGEST_KEPT:
            self[piece] = index
        return index

    def _forget(self) -> None:
        self.clear()
        self._measured: dict[str, tuple[int, int]] = {}
        # Of each piece, its first row among the words and their number; of each word, its hash and notes.
        self._spans, self._words = _Pairs(), _Pairs()


_MARK, _LETTER = 1, 2


def _measure(word: str) -> tuple[int, int]:
    mark = _MARK if PUNCTUATION.issuperset(word) else 0
    letter = _LETTER if any(map(str.isalpha, word)) else 0
    return word_hash(word), len(word) << 2 | mark | letter


class _Pairs:
    """Array of pairs of whole numbers that grows."""

    def __init__(self) -> None:
        self._rows = np.zeros((2**12, 2), np.int64)
        self._filled = 0
        self._added: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self._filled + len(self._added)

    def append(self, pair: tuple[int, int]) -> None:
        self._added.append(pair)

    def rows(self) -> NDArray[np.int64]:
        """Return the array; its last rows are unused."""
        if self._added:
            length = len(self)
            if length > len(self._rows):
                more = np.zeros((max(len(self._rows), len(self._added)), 2), np.int64)
                self._rows = np.concatenate([self._rows, more])
            self._rows[self._filled : length] = self._added
            self._filled = length
            self._added.clear()
        return self._rows


TABLE = WordTable()
