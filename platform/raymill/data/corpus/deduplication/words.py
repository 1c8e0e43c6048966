"""Words of many documents at once, as hashes in one array.

A word is a maximal run of Unicode letters, marks and digits, in lower case. In scripts that are written
without spaces, every character is a word, so that n-grams exist there. All words of a batch are hashed by the
same few operations on arrays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raymill.data.store.hashing import Ints, Words, mix

if TYPE_CHECKING:
    import polars

_NO_WORD = r"[^\p{L}\p{M}\p{N}]+"
_SPACELESS = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
# Characters hashed at once, so that their arrays stay in the processor's cache.
_PIECE_CHARACTERS = 1 << 17
_GAP = re.compile(r"[^\w]|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_SPACE = 32
# Bytes of a word at most; a longer one counts as several.
_WORD_BYTES = 64
# Masks of the first n of eight bytes, n = 0 … 8.
_FIRST_BYTES: Words = np.array([256**n - 1 for n in range(9)], dtype=np.uint64)
_GRAM_BASE = np.uint64(0xD1342543DE82EF95)


@dataclass(frozen=True)
class WordHashes:
    """Words of documents, one document after the other.

    `hashes`: one for each word; `starts`: the number of words before each document, and before the end.
    """

    hashes: Words
    starts: Ints

    def ngrams(self, n: int) -> tuple[Words, Ints]:
        """Hash every n words in a row inside a document; a shorter document, unless empty, is one n-gram.

        Returns:
            hashes and, like `starts`, the number of n-grams before each document and before the end.
        """
        counts = np.diff(self.starts)
        full = np.maximum(counts - n + 1, 0)
        short = (counts > 0) & (full == 0)
        starts = np.concatenate([[0], np.cumsum(full + short)])
        padded = np.concatenate([self.hashes, np.zeros(n, dtype=np.uint64)])
        sums = np.zeros(len(self.hashes), dtype=np.uint64)
        with np.errstate(over="ignore"):
            for offset in range(n):
                sums *= _GRAM_BASE
                sums += padded[offset : offset + len(sums)]
            # Words of the next document must not count in a short one.
            first = self.starts[:-1][short]
            cut = np.zeros(len(first), dtype=np.uint64)
            for offset in range(n):
                inside = offset < counts[short]
                cut = np.where(inside, cut * _GRAM_BASE + padded[first + offset], cut)
        sums[first] = cut
        # A document's n-grams begin at its words, except for the last n - 1.
        grams = np.arange(starts[-1]) + np.repeat(self.starts[:-1] - starts[:-1], full + short)
        return mix(sums[grams]), starts

    def whole(self) -> Words:
        """Return a hash for each document, of all its words in their order."""
        counts = np.diff(self.starts)
        place = np.arange(len(self.hashes)) - np.repeat(self.starts[:-1], counts)
        # Sums of mixed pairs (word, place) don't depend on how documents are batched.
        with np.errstate(over="ignore"):
            sums = np.append(mix(self.hashes ^ mix(place)), np.uint64(0))
            whole = np.add.reduceat(sums, self.starts[:-1]) if len(counts) else sums[:0]
        whole[counts == 0] = 0
        hashes: Words = mix(whole)
        return hashes


def hash_words(texts: Sequence[str]) -> WordHashes:
    """Return the hashes of the words of some documents; a long one takes no more memory than others."""
    hashes, counts = [], [np.zeros(0, dtype=np.int64)]
    waiting: list[str] = []
    length = 0
    owners = [0]
    for text in texts:
        pieces = [*_pieces(text)]
        owners.append(owners[-1] + len(pieces))
        for piece in pieces:
            waiting.append(piece)
            length += len(piece)
            if length >= _PIECE_CHARACTERS:
                found = _hash_pieces(waiting)
                hashes.append(found.hashes)
                counts.append(np.diff(found.starts))
                waiting, length = [], 0
    found = _hash_pieces(waiting)
    hashes.append(found.hashes)
    ends = np.concatenate([[0], np.cumsum(np.concatenate([*counts, np.diff(found.starts)]))])
    return WordHashes(np.concatenate(hashes), ends[owners])


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text between words."""
    begin = 0
    while len(text) - begin > _PIECE_CHARACTERS:
        space = _GAP.search(text, begin + _PIECE_CHARACTERS)
        end = space.start() if space else len(text)
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _hash_pieces(texts: Sequence[str]) -> WordHashes:
    # Its import takes a quarter of a second, and every job imports this module.
    import polars

    plain = polars.Series(texts, dtype=polars.String).str.to_lowercase()
    plain = plain.str.replace_all(_NO_WORD, " ")
    if plain.str.contains(_SPACELESS).any():
        plain = plain.str.replace_all(_SPACELESS, " $1 ")
    content, offsets = _bytes_of(plain)
    wordlike = content != _SPACE
    begins, ends = wordlike.copy(), wordlike.copy()
    begins[1:] &= ~wordlike[:-1]
    ends[:-1] &= ~wordlike[1:]
    # A document may begin or end in the middle of what looks like one word.
    inner = offsets[(offsets > 0) & (offsets < len(content))]
    begins[inner] = wordlike[inner]
    ends[inner - 1] = wordlike[inner - 1]
    starts, lengths = _short_words(np.flatnonzero(begins), np.flatnonzero(ends) + 1)
    return WordHashes(_hash_bytes(content, starts, lengths), np.searchsorted(starts, offsets))


def _short_words(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Return starts and lengths of words, of which overlong ones are cut into several."""
    lengths = ends - starts
    if not len(lengths) or lengths.max() <= _WORD_BYTES:
        return starts, lengths
    parts = -(-lengths // _WORD_BYTES)
    inside = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    cut = np.repeat(starts, parts) + inside * _WORD_BYTES
    return cut, np.minimum(np.repeat(ends, parts) - cut, _WORD_BYTES)


def _hash_bytes(content: NDArray[np.uint8], starts: Ints, lengths: Ints) -> Words:
    """Hash stretches of bytes, eight bytes of all of them at a time."""
    padded = np.concatenate([content, np.zeros(8, dtype=np.uint8)])
    # The eight bytes from every place on, without a copy.
    eight = np.ndarray((len(content),), dtype="<u8", buffer=padded.data, strides=(1,))
    hashes = mix(eight[starts] & _FIRST_BYTES[np.minimum(lengths, 8)])
    for done in range(8, _WORD_BYTES, 8):
        longer = np.flatnonzero(lengths > done)
        if not len(longer):
            break
        rest = eight[starts[longer] + done] & _FIRST_BYTES[np.minimum(lengths[longer] - done, 8)]
        hashes[longer] = mix(hashes[longer] ^ rest)
    words: Words = hashes
    return words


def _bytes_of(texts: polars.Series) -> tuple[NDArray[np.uint8], Ints]:
    """Return the UTF-8 bytes of all texts, and where each begins and the last ends."""
    import polars

    array = texts.to_arrow(compat_level=polars.CompatLevel.oldest())
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    if data is None:
        return np.zeros(0, dtype=np.uint8), bounds - bounds[0]
    content = np.frombuffer(data, dtype=np.uint8)[bounds[0] : bounds[-1]]
    return content, bounds - bounds[0]
