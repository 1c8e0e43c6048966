"""Packing loses no token and no byte, whatever the documents and row sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymill.data.store.pack import Packer, RowGroup, dtype_for, row_group_rows

EOT = 0
documents = st.lists(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 7)), max_size=40),
    min_size=1,
    max_size=12,
)


def packed(
    texts: list[list[tuple[int, int]]], sequence_length: int, row_group_rows: int
) -> list[RowGroup]:
    packer = Packer(
        sequence_length=sequence_length,
        row_group_rows=row_group_rows,
        end_of_text_id=EOT,
        dtype="uint16",
    )
    groups: list[RowGroup] = []
    for text in texts:
        tokens = np.array([token for token, _ in text], dtype=np.int64)
        groups += packer.add(tokens, np.array([size for _, size in text], dtype=np.int64))
    return groups + list(packer.finish())


@given(documents, st.integers(1, 9), st.integers(1, 5))
def test_rows_without_their_overlap_are_the_stream(
    texts: list[list[tuple[int, int]]], sequence_length: int, row_group_rows: int
) -> None:
    groups = packed(texts, sequence_length, row_group_rows)
    stream = [EOT]
    sizes = [0]
    for text in texts:
        stream += [token for token, _ in text] + [EOT]
        sizes += [size for _, size in text] + [0]

    rows = [row for group in groups for row in np.split(group.tokens, np.cumsum(group.length)[:-1])]
    rebuilt = list(rows[0]) + [token for row in rows[1:] for token in row[1:]]
    assert rebuilt == stream
    assert all(rows[i][-1] == rows[i + 1][0] for i in range(len(rows) - 1))
    assert all(len(row) == sequence_length + 1 for row in rows[:-1])
    assert 2 <= len(rows[-1]) <= sequence_length + 1
    assert all(len(group.length) == row_group_rows for group in groups[:-1])

    row_bytes = [int(size) for group in groups for size in group.bytes]
    starts = range(0, len(stream) - 1, sequence_length)
    assert row_bytes == [sum(sizes[s + 1 : s + 1 + sequence_length]) for s in starts]
    assert sum(row_bytes) == sum(sizes)


def test_nothing_in_nothing_out() -> None:
    packer = Packer(sequence_length=4, row_group_rows=2, end_of_text_id=EOT, dtype="uint16")
    assert list(packer.finish()) == []


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_the_dtype_holds_the_largest_id(vocab_size: int, dtype: str) -> None:
    assert dtype_for(vocab_size) == dtype
    assert np.iinfo(np.dtype(dtype)).max >= vocab_size - 1


@pytest.mark.parametrize(
    ("row_bytes", "shard", "corpus", "rows"),
    [
        (4 * 4097, 4 * 10**9, 60 * 10**12, 322),  # 5.3 MB, so that footers of 4 GB are small
        (4 * 4097, 64 * 2**20, 60 * 10**12, 63),  # 1 MiB
        (2 * 1025, 64 * 2**20, 10**9, 29),  # 16,384 row groups
        (2 * 1025, 64 * 2**20, 10**6, 8),
    ],
)
def test_row_groups_are_small_for_small_corpora_and_large_for_large_shards(
    row_bytes: int, shard: int, corpus: int, rows: int
) -> None:
    assert row_group_rows(row_bytes, shard, corpus) == rows
    if corpus > 10**12:
        assert shard / (rows * row_bytes) * 140 < 0.0205 * rows * row_bytes
