"""Shuffle of training documents by hash, in memory that doesn't grow with the text.

An external sort whose keys are hashes of (seed, input range, number in it): units write their
encoded documents into runs, sorted by key; then each bucket, a range of keys, is collected from all
runs, sorted and packed into one shard. Both steps leave results that a later try uses. The order
depends on the inputs' names alone, not on the number of tasks.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raymill.data.store.hashing import Words, mix
from raymill.data.store.manifest import Shard, TokenizerIdentity
from raymill.data.store.pack import Packer, dtype_for
from raymill.data.store.shards import ShardWriter
from raymill.data.store.split import TRAIN
from raymill.durable import canonical_json, fsync_path, sha256_file, sha256_text

RUNS_FOLDER = "runs"
# Tokens of a run at most, with 8 to 12 bytes each in memory; one large file gives several runs.
RUN_TOKENS = 1 << 24
KEYS = 2**64


@dataclass(frozen=True)
class Run:
    """File of encoded documents, sorted by key. `bytes`: UTF-8 bytes of their text."""

    path: str
    sha256: str
    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class KeyRange:
    """Range of keys, [low, high), that becomes shard number `number` of the training split."""

    number: int
    low: int
    high: int


def buckets_of(runs: Sequence[Run], shard_input_bytes: int) -> list[KeyRange]:
    """Divide the keys so that a bucket has about `shard_input_bytes` of text."""
    count = max(1, -(-sum(run.bytes for run in runs) // shard_input_bytes))
    edges = [KEYS * number // count for number in range(count + 1)]
    return [KeyRange(n, low, high) for n, (low, high) in enumerate(itertools.pairwise(edges))]


class RunWriter:
    """Writer of a unit's runs; holds the documents of one in memory."""

    def __init__(self, folder: Path, unit: int, seed: int, dtype: str) -> None:
        self._folder, self._unit, self._seed = folder, unit, seed
        self._dtype = np.dtype(dtype)
        self._runs: list[Run] = []
        self._range, self._range_key, self._number = "", np.uint64(0), 0
        self._clear()

    def add(
        self, input_range: str, ids: NDArray[np.integer], token_bytes: NDArray[np.integer]
    ) -> None:
        """Add the next document of an input range, which the name identifies."""
        if input_range != self._range:
            text = f"{self._seed}/{input_range}"
            digest = hashlib.sha256(text.encode()).digest()
            self._range, self._number = input_range, 0
            self._range_key = np.frombuffer(digest[:8], dtype="<u8")[0]
        self._keys.append(int(mix(self._range_key ^ mix(np.uint64(self._number)))))
        self._number += 1
        self._ids.append(ids.astype(self._dtype))
        self._bytes.append(token_bytes.astype(np.uint32))
        self._pending += len(ids)
        if self._pending >= RUN_TOKENS:
            self._write()

    def finish(self) -> tuple[Run, ...]:
        """Write the last run and return all of them."""
        if self._keys:
            self._write()
        return tuple(self._runs)

    def _clear(self) -> None:
        self._keys: list[int] = []
        self._ids: list[NDArray[np.unsignedinteger]] = []
        self._bytes: list[NDArray[np.uint32]] = []
        self._pending = 0

    def _write(self) -> None:
        keys = np.array(self._keys, dtype=np.uint64)
        order = np.argsort(keys, kind="stable").tolist()
        ids = np.concatenate([self._ids[i] for i in order])
        token_bytes = np.concatenate([self._bytes[i] for i in order])
        ends = np.cumsum([len(self._ids[i]) for i in order])
        path = f"{RUNS_FOLDER}/{self._unit:05d}-{len(self._runs)}.bin"
        target = self._folder / path
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                for column in (
                    np.array([len(keys), len(ids)], dtype=np.int64),
                    keys[order], ends.astype(np.int64), ids, token_bytes,
                ):  # fmt: skip
                    file.write(column.tobytes())
            fsync_path(temporary)
            digest = sha256_file(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        self._runs.append(Run(path, digest, len(keys), len(ids), int(token_bytes.sum())))
        self._clear()


class _OpenRun:
    """Columns of a run, mapped into memory."""

    def __init__(self, folder: Path, run: Run, dtype: str) -> None:
        raw = np.memmap(folder / run.path, dtype=np.uint8, mode="r")
        counts = (run.documents, run.documents, run.tokens, run.tokens)
        types = ("u8", "i8", dtype, "u4")
        sizes = [n * np.dtype(kind).itemsize for n, kind in zip(counts, types, strict=True)]
        starts = np.cumsum([16, *sizes])
        self.keys, self.ends, self.ids, self.bytes = (
            raw[start : start + size].view(kind)
            for start, size, kind in zip(starts, sizes, types, strict=False)
        )

    def documents(
        self, bucket: KeyRange
    ) -> Iterator[tuple[int, NDArray[np.unsignedinteger], NDArray[np.uint32]]]:
        """Yield key, ids and token bytes of the bucket's documents."""
        first = int(np.searchsorted(self.keys, np.uint64(bucket.low)))
        last = len(self.keys)
        if bucket.high < KEYS:
            last = int(np.searchsorted(self.keys, np.uint64(bucket.high)))
        for index in range(first, last):
            tokens = slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))
            yield int(self.keys[index]), np.array(self.ids[tokens]), np.array(self.bytes[tokens])


@dataclass(frozen=True)
class BucketSettings:
    """Settings that all buckets of a preparation share."""

    folder: str
    runs: tuple[Run, ...]
    tokenizer: TokenizerIdentity
    sequence_length: int
    row_group_rows: int

    def digest(self, bucket: KeyRange) -> str:
        """Return the digest of everything that a bucket's shard depends on."""
        shared = asdict(self)
        # The same runs in another folder have the same bytes.
        del shared["folder"]
        return sha256_text(canonical_json({"bucket": asdict(bucket), "settings": shared}))

    def pack(self, bucket: KeyRange) -> Shard | None:
        """Write the bucket's shard; None if no document falls into it."""
        dtype = dtype_for(self.tokenizer.vocab_size)
        # Equal keys stay in the order of the runs, so the result is unique.
        found: list[tuple[int, NDArray[np.unsignedinteger], NDArray[np.uint32]]] = []
        for run in self.runs:
            found += _OpenRun(Path(self.folder), run, dtype).documents(bucket)
        if not found:
            return None
        packer = Packer(
            sequence_length=self.sequence_length,
            row_group_rows=self.row_group_rows,
            end_of_text_id=self.tokenizer.end_of_text_id,
            begins_with=self.tokenizer.begins_with,
            dtype=dtype,
        )
        keys: Words = np.array([key for key, _, _ in found], dtype=np.uint64)
        with ShardWriter(
            Path(self.folder),
            f"{TRAIN}/{bucket.number:05d}.parquet",
            dtype=dtype,
            sequence_length=self.sequence_length,
        ) as writer:
            for index in np.argsort(keys, kind="stable").tolist():
                for group in packer.add(found[index][1], found[index][2]):
                    writer.write(group)
            for group in packer.finish():
                writer.write(group)
            return writer.finish()
