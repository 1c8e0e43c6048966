"""Integer hashing and permutations without tables, on which every order of data rests.

All randomness is splitmix64 in our own code and never a library's generator: a library may change
its streams between versions, and then a resumed run would see other data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_ROUNDS = 6

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


def mix(value: Any) -> Any:
    """Apply splitmix64's finalizer (Steele, Lea & Flood 2014): uint64 → uint64, a bijection."""
    with np.errstate(over="ignore"):
        word = np.asarray(value, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return word ^ (word >> np.uint64(31))


def hash_key(*numbers: int) -> np.uint64:
    """Return one 64-bit key from a few integers."""
    key = np.uint64(0)
    for number in numbers:
        key = mix(key ^ mix(np.uint64(number % 2**64)))
    return np.uint64(key)


def random_permutation(length: int, key: np.uint64) -> Ints:
    """Return a permutation of range(length): sorted by hash, ties (hashes are 64 bits) by index."""
    with np.errstate(over="ignore"):
        words = mix(np.arange(length, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95) + key)
    return np.argsort(words, kind="stable").astype(np.int64)


def feistel(values: Ints, size: int, key: np.uint64) -> Ints:
    """Evaluate a permutation of range(size) at `values`, without a table (Black & Rogaway 2002)."""
    return _walk(values, size, np.full(values.shape, size), key, range(_ROUNDS))


def inverse_feistel(values: Ints, size: int, key: np.uint64) -> Ints:
    """Evaluate the inverse of `feistel`."""
    return _walk(values, size, np.full(values.shape, size), key, range(_ROUNDS - 1, -1, -1))


def feistel_each(values: Ints, sizes: Ints, largest: int, keys: Words) -> Ints:
    """Evaluate a permutation of range(sizes[i]) with a key of its own at each `values[i]`.

    `largest` bounds all sizes of the family, so that a value doesn't depend on its neighbors.
    """
    return _walk(values, largest, sizes, keys, range(_ROUNDS))


def _walk(values: Ints, largest: int, sizes: Ints, key: np.uint64 | Words, rounds: range) -> Ints:
    """Apply the network on the next even power of two until each value is below its size again."""
    half = max(1, (max(largest - 1, 1).bit_length() + 1) // 2)
    out, limits = values.astype(np.uint64), sizes.astype(np.uint64)
    outside = np.arange(out.size)
    while outside.size:
        keys = key[outside] if isinstance(key, np.ndarray) else key
        out[outside] = _network(out[outside], half, keys, rounds)
        outside = outside[out[outside] >= limits[outside]]
    return out.astype(np.int64)


def _network(values: Words, half: int, key: np.uint64 | Words, rounds: range) -> Words:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    forward = rounds.step > 0
    for number in rounds:
        round_key = mix(key ^ mix(np.uint64(number + 101)))
        if forward:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        else:
            left, right = right ^ (mix(left ^ round_key) & mask), left
    return (left << np.uint64(half)) | right
