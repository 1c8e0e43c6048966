"""Bits per byte of the held-out text by a byte trigram, gzip and xz: what a model must beat.

The trigram is fitted on the same training text and smoothed after Witten and Bell (1991), in the
interpolated form of Chen and Goodman (1998), section 2.5:

    p(c|ab) = (N(abc) + T(ab) p(c|b)) / (N(ab) + T(ab))

where T counts the different bytes seen after a context; the recursion ends in 1/256.
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

Bytes = npt.NDArray[np.uint8]
_DOCUMENTS_A_BATCH = 256


@dataclass(frozen=True)
class Baselines:
    """Bits per byte of the held-out text."""

    byte_trigram: float
    gzip: float
    xz: float


def baselines(prepared: PreparedData) -> Baselines:
    """Measure, or read back what was measured on the same data."""
    cache = prepared.folder / f"baselines-{prepared.manifest.digest[:12]}.json"
    known = read_json(cache)
    if known is not None:
        return Baselines(**known)
    held_out = text_bytes(prepared, "validation")
    found = Baselines(
        byte_trigram=trigram_bits_per_byte(text_bytes(prepared, "train"), held_out),
        gzip=8 * len(gzip.compress(held_out, 9)) / len(held_out),
        xz=8 * len(lzma.compress(held_out, preset=9)) / len(held_out),
    )
    write_atomic(cache, json.dumps(asdict(found)))
    return found


def text_bytes(prepared: PreparedData, split: str) -> bytes:
    """The split's documents, decoded and put end to end.

    Raises:
        DataError: they aren't as many bytes as the manifest says; the tokenizer loses something.
    """
    tokenizer = read_tokenizer(prepared.tokenizer_folder / "tokenizer.json")
    text = bytearray()
    batch: list[list[int]] = []
    for document in documents(prepared, split):
        batch.append(document)
        if len(batch) == _DOCUMENTS_A_BATCH:
            text += "".join(tokenizer.decode_batch(batch, skip_special_tokens=False)).encode()
            batch = []
    text += "".join(tokenizer.decode_batch(batch, skip_special_tokens=False)).encode()
    expected = prepared.manifest.splits[split].bytes
    if len(text) != expected:
        raise DataError(
            f"{prepared.folder}: the {split} tokens decode to {len(text)} bytes, the manifest says "
            f"{expected}; this tokenizer doesn't give its text back, so byte baselines can't be had"
        )
    return bytes(text)


def documents(prepared: PreparedData, split: str) -> Iterator[list[int]]:
    """Token ids of each document of a split, without the tokens that begin and end it."""
    manifest = prepared.manifest
    tokenizer = manifest.tokenizer
    begun = len(document_prefix(tokenizer.begins_with, tokenizer.end_of_text_id))
    for shard in manifest.splits[split].shards:
        stream = np.concatenate(
            [
                rows.tokens[row, 1 : rows.length[row]]  # its first is the last of the row before
                for rows in row_groups(prepared.shard_path(shard), shard, manifest.dtype)
                for row in range(len(rows))
            ]
        )
        ends = np.flatnonzero(stream == tokenizer.end_of_text_id)
        start = max(0, begun - 1)  # the shard's first token isn't in the stream
        for end in ends.tolist():
            yield stream[start:end].tolist()
            start = end + 1 + begun


def trigram_bits_per_byte(train: bytes, held_out: bytes) -> float:
    """Cross-entropy of `held_out` under a byte trigram fitted on `train`, in bits a byte."""
    fitted = np.frombuffer(train, dtype=np.uint8).astype(np.int64)
    asked = np.frombuffer(held_out, dtype=np.uint8).astype(np.int64)
    uniform = np.full(len(asked), 1 / 256)
    unigram = _interpolate(fitted, asked, 0, uniform)
    bigram = _interpolate(fitted, asked, 1, unigram)
    trigram = _interpolate(fitted, asked, 2, bigram)
    return float(-np.log2(trigram).mean())


def _interpolate(
    fitted: npt.NDArray[np.int64],
    asked: npt.NDArray[np.int64],
    order: int,
    lower: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """p(byte | `order` bytes before it) at every place of `asked`; the first few fall back."""
    counts = np.bincount(_grams(fitted, order + 1), minlength=256 ** (order + 1))
    table = counts.reshape(-1, 256)
    total, kinds = table.sum(axis=1), (table > 0).sum(axis=1)
    if order:
        context = _grams(asked, order)[:-1]
        gram = _grams(asked, order + 1)
    else:
        context, gram = np.zeros(len(asked), dtype=np.int64), asked
    result = lower.copy()
    seen = total[context] > 0
    weight = kinds[context]
    mixed = (counts[gram] + weight * lower[order:]) / np.maximum(total[context] + weight, 1)
    result[order:] = np.where(seen, mixed, lower[order:])
    return result


def _grams(values: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Each run of n bytes as one number."""
    length = len(values) - n + 1
    grams = np.zeros(max(length, 0), dtype=np.int64)
    for place in range(n):
        grams = grams * 256 + values[place : place + length]
    return grams
