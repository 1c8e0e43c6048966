"""Permutations without tables are bijections, and no value ever changes between versions."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.data.store.hashing import (
    feistel,
    feistel_each,
    hash_key,
    inverse_feistel,
    random_permutation,
)

seeds = st.integers(0, 2**63)


@given(st.integers(1, 3000), seeds)
@settings(max_examples=60, deadline=None)
def test_feistel_is_a_bijection_and_inverts(size: int, seed: int) -> None:
    key = hash_key(seed)
    image = feistel(np.arange(size), size, key)
    assert np.array_equal(np.sort(image), np.arange(size))
    assert np.array_equal(inverse_feistel(image, size, key), np.arange(size))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), seeds)
@settings(max_examples=40, deadline=None)
def test_each_size_has_its_own_bijection_whatever_stands_beside_it(
    sizes: list[int], seed: int
) -> None:
    keys = [hash_key(seed, number) for number in range(len(sizes))]
    values = np.concatenate([np.arange(size) for size in sizes])
    together = feistel_each(values, np.repeat(sizes, sizes), 20, np.repeat(keys, sizes))
    parts = np.split(together, np.cumsum(sizes)[:-1])
    for size, key, part in zip(sizes, keys, parts, strict=True):
        assert np.array_equal(np.sort(part), np.arange(size))
        alone = feistel_each(np.arange(size), np.full(size, size), 20, np.full(size, key))
        assert np.array_equal(alone, part)


def test_permutations_never_change_between_versions() -> None:
    assert random_permutation(8, hash_key(1, 2)).tolist() == [5, 0, 3, 2, 6, 7, 1, 4]


def test_a_small_permutation_is_uniform() -> None:
    """Each row is as likely at each place of a group of 64; chi-square with 63 * 63 degrees."""
    groups = 2000
    keys = np.repeat([hash_key(9, number) for number in range(groups)], 64)
    rows = np.tile(np.arange(64), groups)
    image = feistel_each(rows, np.full(len(rows), 64), 64, keys)
    counts = np.zeros((64, 64))
    np.add.at(counts, (rows, image), 1)
    expected = groups / 64
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 63 * 63) < 5 * np.sqrt(2 * 63 * 63)
