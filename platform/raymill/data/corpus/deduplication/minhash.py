"""MinHash signatures of documents, keys of their bands, and the estimate of two documents' similarity.

Broder 1997 (On the resemblance and containment of documents): the share of equal minima of independent
hashes estimates the Jaccard similarity J of two sets. Documents that agree in all `rows` hashes of one of
`bands` bands become candidates, with probability 1 - (1 - J^rows)^bands (Leskovec, Rajaraman & Ullman,
Mining of Massive Datasets, section 3.4). Candidates are then compared by 8 bits of every minimum (Li &
König 2010, b-bit minwise hashing), which removes what the bands let through by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymill.data.store.hashing import Ints, Words, mix

Bytes = NDArray[np.uint8]

# N-grams hashed at once, so that a hash of all of them stays in the processor's cache.
_CHUNK = 1 << 15
# Two different minima have the same 8 bits by chance.
_CHANCE = 1 / 256


@dataclass(frozen=True)
class Bands:
    """Number of bands, and of hashes in each."""

    bands: int
    rows: int

    @property
    def hashes(self) -> int:
        """Length of a signature."""
        return self.bands * self.rows


def minima(grams: Words, starts: Ints, hashes: int) -> NDArray[np.uint32]:
    """Return the minimum of each hash over each document's n-grams, [documents, hashes].

    `starts`: the number of n-grams before each document and before the end. Documents without n-grams get
    the largest number everywhere.
    """
    words = (grams >> np.uint64(32)).astype(np.uint32)
    factors = (mix(np.arange(hashes, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32)
    factors |= np.uint32(1)
    shifts = (mix(np.arange(hashes, dtype=np.uint64) + np.uint64(1 << 32))).astype(np.uint32)
    result = np.full((len(starts) - 1, hashes), 0xFFFFFFFF, dtype=np.uint32)
    filled = np.flatnonzero(np.diff(starts))
    document = 0
    while document < len(filled):
        begin = int(starts[filled[document]])
        last = int(np.searchsorted(starts[filled], begin + _CHUNK, side="right"))
        end_document = max(last - 1, document) + 1
        some = filled[document:end_document]
        chunk = words[begin : int(starts[some[-1] + 1])]
        local = starts[some] - begin
        hashed = np.empty_like(chunk)
        found = np.empty((hashes, len(some)), dtype=np.uint32)
        for number in range(hashes):
            np.multiply(chunk, factors[number], out=hashed)
            hashed += shifts[number]
            np.minimum.reduceat(hashed, local, out=found[number])
        result[some] = found.T
        document = end_document
    return result


def band_keys(signatures: NDArray[np.uint32], bands: Bands) -> Words:
    """Return a key for each band of each document, [bands, documents]."""
    parts = signatures.reshape(len(signatures), bands.bands, bands.rows)
    key = np.zeros((len(signatures), bands.bands), dtype=np.uint64)
    for row in range(bands.rows):
        key = mix(key ^ parts[:, :, row].astype(np.uint64))
    return np.ascontiguousarray(key.T)


def short_signatures(signatures: NDArray[np.uint32]) -> Bytes:
    """Return 8 bits of every minimum, [documents, hashes]."""
    # Minima are small numbers; the product's high bits depend on all of their bits.
    with np.errstate(over="ignore"):
        return ((signatures * np.uint32(0x9E3779B1)) >> np.uint32(24)).astype(np.uint8)


def estimated_similarity(left: Bytes, right: Bytes) -> NDArray[np.float64]:
    """Return the estimated Jaccard similarity of each pair of short signatures, [pairs, hashes] each."""
    equal = np.count_nonzero(left == right, axis=1) / max(left.shape[1], 1)
    similarity: NDArray[np.float64] = (equal - _CHANCE) / (1 - _CHANCE)
    return similarity
