"""Bits per byte of the held-out text by a byte trigram, gzip and xz: baselines that a model must beat.

The trigram is fitted on the same training text and smoothed after Witten and Bell (1991), in the
interpolated form of Chen and Goodman (1998), section 2.5:

    p(c|ab) = (N(abc) + T(ab) p(c|b)) / (N(ab) + T(ab))

where T counts the distinct bytes seen after a context; the recursion ends in 1/256.
"""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from raymill.data.store.manifest import PreparedData, read_tokenizer
from raymill.data.store.pack import document_prefix
from raymill.data.store.shards import row_groups
from raymill.durable import write_atomic
from raymill.errors import DataError
from raymill.reading import read_json

_DOCUMENTS_PER_BATCH = 256


@dataclass(frozen=True)
class Baselines:
    """Bits per byte of the held-out text."""

    byte_trigram: float
    gzip: float
    xz: float


def baselines(prepared: PreparedData) -> Baselines:
    """Compute the baselines, or read the result cached for the same data."""
    cache = prepared.folder / f"baselines-{prepared.manifest.digest[:12]}.json"
    cached = read_json(cache)
    if cached is not None:
        return Baselines(**cached)
    held_out = text_bytes(prepared, "validation")
    measured = Baselines(
        byte_trigram=trigram_bits_per_byte(text_bytes(prepared, "train"), held_out),
        gzip=8 * len(gzip.compress(held_out, 9)) / len(held_out),
        xz=8 * len(lzma.compress(held_out, preset=9)) / len(held_out),
    )
    write_atomic(cache, json.dumps(asdict(measured)))
    return measured


def text_bytes(prepared: PreparedData, split: str) -> bytes:
    """Return the split's documents, decoded and concatenated.

    Raises:
        DataError: their size isn't the manifest's, because the tokenizer loses part of the text.
    """
    tokenizer = read_tokenizer(prepared.tokenizer_folder / "tokenizer.json")
    text = bytearray()
    batch: list[list[int]] = []
    for document in documents(prepared, split):
        batch.append(document)
        if len(batch) == _DOCUMENTS_PER_BATCH:
            text += "".join(tokenizer.decode_batch(batch, skip_special_tokens=False)).encode()
            batch = []
    text += "".join(tokenizer.decode_batch(batch, skip_special_tokens=False)).encode()
    expected = prepared.manifest.splits[split].bytes
    if len(text) != expected:
        raise DataError(
            f"{prepared.folder}: the {split} tokens decode to {len(text)} bytes, the manifest says "
            f"{expected}; this tokenizer doesn't restore its text, so byte baselines can't be computed"
        )
    return bytes(text)


def documents(prepared: PreparedData, split: str) -> Iterator[list[int]]:
    """Yield the token ids of each document of a split, without the tokens that begin and end it."""
    manifest = prepared.manifest
    tokenizer = manifest.tokenizer
    opening_length = len(document_prefix(tokenizer.begins_with, tokenizer.end_of_text_id))
    for shard in manifest.splits[split].shards:
        stream = np.concatenate(
            [
                # A row's first token repeats the last one of the row before.
                rows.tokens[row, 1 : rows.length[row]]
                for rows in row_groups(prepared.shard_path(shard), shard, manifest.dtype)
                for row in range(len(rows))
            ]
        )
        ends = np.flatnonzero(stream == tokenizer.end_of_text_id)
        # The shard's first token isn't in the stream.
        start = max(0, opening_length - 1)
        for end in ends.tolist():
            yield stream[start:end].tolist()
            start = end + 1 + opening_length


def trigram_bits_per_byte(train: bytes, held_out: bytes) -> float:
    """Return the cross-entropy of `held_out` under a byte trigram fitted on `train`, in bits per byte."""
    fitted = np.frombuffer(train, dtype=np.uint8).astype(np.int64)
    scored = np.frombuffer(held_out, dtype=np.uint8).astype(np.int64)
    uniform = np.full(len(scored), 1 / 256)
    unigram = _interpolate(fitted, scored, 0, uniform)
    bigram = _interpolate(fitted, scored, 1, unigram)
    trigram = _interpolate(fitted, scored, 2, bigram)
    return float(-np.log2(trigram).mean())


def _interpolate(
    fitted: npt.NDArray[np.int64],
    scored: npt.NDArray[np.int64],
    order: int,
    lower: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return p(byte | `order` bytes before it) at every position of `scored`.

    The first `order` positions fall back to `lower`, the probabilities of the next lower order.
    """
    counts = np.bincount(_grams(fitted, order + 1), minlength=256 ** (order + 1))
    table = counts.reshape(-1, 256)
    total, kinds = table.sum(axis=1), (table > 0).sum(axis=1)
    if order:
        context = _grams(scored, order)[:-1]
        gram = _grams(scored, order + 1)
    else:
        context, gram = np.zeros(len(scored), dtype=np.int64), scored
    result = lower.copy()
    seen = total[context] > 0
    weight = kinds[context]
    mixed = (counts[gram] + weight * lower[order:]) / np.maximum(total[context] + weight, 1)
    result[order:] = np.where(seen, mixed, lower[order:])
    return result


def _grams(values: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Return each run of n bytes as one number."""
    length = len(values) - n + 1
    grams = np.zeros(max(length, 0), dtype=np.int64)
    for offset in range(n):
        grams = grams * 256 + values[offset : offset + length]
    return grams
