"""Contamination: share of the held-out text that also occurs in training text, by token 13-grams.

GPT-3 (Brown et al. 2020, appendix C) counted 13-grams of words. Tokens are used here: the model
sees tokens, no text needs to be kept, and 13 tokens are shorter than 13 words, so the measure is
stricter. N-grams never cross the end of a document.

Memory is bounded: only held-out n-grams are kept, as 64-bit hashes; of more than MAX_NGRAMS, a
share chosen by hash is examined. Training text streams past, shard by shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raymill.data.store.facts import Contamination
from raymill.data.store.hashing import mix
from raymill.data.store.manifest import Shard, Split
from raymill.data.store.shards import row_groups

N = 13
MAX_NGRAMS = 1 << 22
MIN_MERGE = 1 << 16

Hashes = NDArray[np.uint64]


def sampling_shift(validation: Split) -> int:
    """Return the number of low bits that must be 0 in examined hashes; 0 unless much is held
    out."""
    return max(0, (validation.tokens - 1).bit_length() - MAX_NGRAMS.bit_length() + 1)


def shard_ngrams(
    folder: Path, shard: Shard, dtype: str, end_of_text_id: int, shift: int
) -> Iterator[Hashes]:
    """Yield the hashes of all n-grams inside a shard's documents, row group by row group."""
    tail = np.zeros(0, dtype=np.int64)
    for rows in row_groups(folder / shard.path, shard, dtype):
        inside = np.arange(1, rows.tokens.shape[1]) < rows.length[:, None]
        # Each row repeats the last token of the previous row, so its first token is skipped; the
        # shard's very first token is an end-of-text token anyway.
        stream = np.concatenate([tail, rows.tokens[:, 1:][inside].astype(np.int64)])
        yield _sampled(ngram_hashes(stream, end_of_text_id), shift)
        # An n-gram may span two row groups.
        tail = stream[-(N - 1) :]


def ngram_hashes(stream: NDArray[np.int64], end_of_text_id: int) -> Hashes:
    """Hash every window of N tokens that contains no end-of-text token."""
    count = len(stream) - N + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    mixed = mix(stream.astype(np.uint64))
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(N):
        hashes = mix(hashes ^ mixed[offset : offset + count])
    # A window without an end has as many ends before its last token as before its first.
    ends = np.concatenate([[0], np.cumsum(stream == end_of_text_id)])
    inside: Hashes = hashes[ends[N:] == ends[:-N]]
    return inside


def merge_counts(
    parts: Iterable[tuple[Hashes, NDArray[np.int64]]],
) -> tuple[Hashes, NDArray[np.int64]]:
    """Sum up (hashes, occurrences) pairs into one sorted pair.

    Parts are collected until they are as many as those already merged: sorting everything again for
    each small part would take quadratic time.
    """
    merged = (np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64))
    waiting: list[tuple[Hashes, NDArray[np.int64]]] = []
    for part in parts:
        waiting.append(part)
        if sum(len(hashes) for hashes, _ in waiting) > max(len(merged[0]), MIN_MERGE):
            merged = _summed([merged, *waiting])
            waiting = []
    return _summed([merged, *waiting])


def _summed(
    parts: Sequence[tuple[Hashes, NDArray[np.int64]]],
) -> tuple[Hashes, NDArray[np.int64]]:
    hashes, index = np.unique(np.concatenate([part for part, _ in parts]), return_inverse=True)
    counts = np.zeros(len(hashes), dtype=np.int64)
    # `np.add.at` also adds up repeated indices, unlike indexed assignment.
    np.add.at(counts, index, np.concatenate([count for _, count in parts]))
    return hashes, counts


def count_ngrams(
    folder: Path, shard: Shard, dtype: str, end_of_text_id: int, shift: int
) -> tuple[Hashes, NDArray[np.int64]]:
    """Return the distinct n-grams of a (held-out) shard and the number of times each occurs."""
    parts = shard_ngrams(folder, shard, dtype, end_of_text_id, shift)
    return merge_counts(np.unique(part, return_counts=True) for part in parts)


def occurring(
    folder: Path, shard: Shard, dtype: str, end_of_text_id: int, shift: int, held_out: Hashes
) -> NDArray[np.bool_]:
    """Mark those of the sorted held-out n-grams that occur in a (training) shard."""
    occurs = np.zeros(len(held_out), dtype=np.bool_)
    if not len(held_out):
        return occurs
    for hashes in shard_ngrams(folder, shard, dtype, end_of_text_id, shift):
        indices = np.minimum(np.searchsorted(held_out, hashes), len(held_out) - 1)
        occurs[indices[held_out[indices] == hashes]] = True
    return occurs


def summary(counts: NDArray[np.int64], occurs: NDArray[np.bool_], shift: int) -> Contamination:
    """Compute the shares, rounded to six places because a manifest's digest depends on them."""
    total = int(counts.sum())
    return Contamination(
        n=N,
        unit="token",
        share=round(float(counts[occurs].sum()) / total, 6) if total else 0.0,
        distinct_share=round(float(occurs.mean()), 6) if total else 0.0,
        held_out=total,
        sampled=2.0**-shift,
    )


def _sampled(hashes: Hashes, shift: int) -> Hashes:
    return hashes[hashes & np.uint64((1 << shift) - 1) == 0] if shift else hashes
