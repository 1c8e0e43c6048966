"""N-gram overlap agrees with a count by plain Python sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymill.data.store.manifest import Shard, Split
from raymill.data.store.pack import Packer
from raymill.data.store.shards import ShardWriter
from raymill.data.text import contamination
from raymill.data.text.contamination import N, count_ngrams, merge_counts, ngram_hashes, occurring

EOT = 0
streams = st.lists(st.integers(0, 3), max_size=80)


def plain(stream: list[int]) -> list[tuple[int, ...]]:
    windows = (tuple(stream[i : i + N]) for i in range(len(stream) - N + 1))
    return [window for window in windows if EOT not in window]


@given(streams, streams)
def test_hashes_tell_ngrams_apart_as_tuples_do(one: list[int], two: list[int]) -> None:
    first, second = (ngram_hashes(np.array(s, dtype=np.int64), EOT) for s in (one, two))
    assert len(first) == len(plain(one))
    shared = np.isin(first, second).tolist()
    known = set(plain(two))
    assert shared == [window in known for window in plain(one)]


def write(folder: Path, name: str, documents: list[list[int]]) -> Shard:
    packer = Packer(sequence_length=5, row_group_rows=2, end_of_text_id=EOT, dtype="uint16")
    with ShardWriter(folder, name, dtype="uint16", sequence_length=5) as writer:
        for document in documents:
            for group in packer.add(np.array(document), np.ones(len(document), dtype=np.int64)):
                writer.write(group)
        for group in packer.finish():
            writer.write(group)
        return writer.finish()


@pytest.mark.parametrize("shift", [0, 1])
def test_shares_over_shards(tmp_path: Path, shift: int) -> None:
    random = np.random.default_rng(0)
    train = [random.integers(1, 3, size=200).tolist() for _ in range(40)]
    held = [random.integers(1, 3, size=60).tolist() for _ in range(5)] + [train[3][20:80]]
    train_shards = [write(tmp_path, f"{i}.parquet", train[i::2]) for i in range(2)]
    held_shard = write(tmp_path, "held.parquet", held)
    where = ("uint16", EOT, shift)
    hashes, counts = merge_counts([count_ngrams(tmp_path, held_shard, *where)])
    found = np.zeros(len(hashes), dtype=np.bool_)
    for shard in train_shards:
        found |= occurring(tmp_path, shard, *where, hashes)
    result = contamination.summary(counts, found, shift)
    known = {window for document in train for window in plain(document)}
    windows = [window for document in held for window in plain(document)]
    share = np.mean([window in known for window in windows])
    assert result.sampled == 2.0**-shift
    if shift == 0:
        assert result.held_out == len(windows)
        assert result.share == pytest.approx(share, abs=1e-6)
    else:
        assert result.share == pytest.approx(share, abs=0.15)


def test_a_huge_held_out_set_is_sampled() -> None:
    def tokens(count: int) -> Split:
        return Split(1, count, count - 1, 1, ())

    assert contamination.sampling_shift(tokens(contamination.MAX_NGRAMS)) == 0
    assert contamination.sampling_shift(tokens(contamination.MAX_NGRAMS * 8)) == 3
