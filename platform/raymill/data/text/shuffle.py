"""Shuffle of training documents by hash, in memory that doesn't grow with the text.

An external sort whose keys are hashes of (seed, input range, number in it): units write their
encoded documents into runs, sorted by key; then each bucket, a range of keys, is collected from all
runs, sorted and packed into one shard. Both steps leave results that a later try uses. The order
depends on the inputs' names alone, not on the number of tasks.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from raymill.data.sources.selected_documents import TRAINED
from raymill.data.store.hashing import Words
from raymill.data.store.split import TRAIN
from raymill.data.text.runs import KEYS, OpenRun, Run, RunEntry
from raymill.data.text.shard_packer import PackedShard, RowSettings, ShardPacker
from raymill.data.text.unit import UNITS_FOLDER
from raymill.durable import canonical_json, sha256_file, sha256_text, write_atomic
from raymill.reading import MISSING, read_bytes, read_text


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


@dataclass(frozen=True)
class BucketSettings:
    """Settings that all buckets of a preparation share; `runs_folder` holds the runs."""

    rows: RowSettings
    runs_folder: str
    runs: tuple[Run, ...]

    def digest(self, bucket: KeyRange) -> str:
        """Return the digest of everything that a bucket's shard depends on."""
        rows = asdict(self.rows)
        # The same runs in another folder have the same bytes.
        del rows["folder"]
        runs = [run.sha256 + run.selection_sha256 for run in self.runs]
        return sha256_text(canonical_json({"bucket": asdict(bucket), "rows": rows, "runs": runs}))

    def pack(self, bucket: KeyRange) -> PackedShard | None:
        """Write the bucket's shard; None if no document falls into it."""
        # Equal keys stay in the order of the runs, so the result is unique.
        found: list[RunEntry] = []
        for run in self.runs:
            opened = OpenRun(Path(self.runs_folder), run)
            places = np.arange(*opened.within(bucket.low, bucket.high))
            if run.selection:
                selection = np.frombuffer(read_bytes(Path(run.selection)), dtype=np.uint8)
                places = places[selection[opened.rows[places]] == TRAINED]
            found += opened.entries(places)
        if not found:
            return None
        keys: Words = np.array([entry.key for entry in found], dtype=np.uint64)
        path = f"{TRAIN}/{bucket.number:05d}.parquet"
        with ShardPacker(path, self.rows, bucket.number) as packer:
            for index in np.argsort(keys, kind="stable").tolist():
                entry = found[index]
                packer.add(entry.origin, entry.ids, entry.token_bytes, ends=entry.ends)
            return packer.finish()


def pack_bucket(bucket: KeyRange, settings: BucketSettings) -> PackedShard | None:
    """Write a bucket's shard and its sidecar, unless an earlier run has; None if it has no documents."""
    folder = Path(settings.rows.folder)
    sidecar = folder / UNITS_FOLDER / f"bucket-{bucket.number:05d}.json"
    digest = settings.digest(bucket)
    try:
        tree = json.loads(read_text(sidecar))
        if tree["digest"] == digest:
            if tree["packed"] is None:
                return None
            earlier = PackedShard.from_tree(tree["packed"])
            files = (earlier.shard, earlier.lineage)
            if all(sha256_file(folder / file.path) == file.sha256 for file in files):
                return earlier
    except (*MISSING, ValueError, KeyError, TypeError):
        pass
    started = time.monotonic()
    packed = settings.pack(bucket)
    described = None if packed is None else asdict(packed)
    seconds = time.monotonic() - started
    tree = {"digest": digest, "packed": described, "seconds": seconds}
    write_atomic(sidecar, canonical_json(tree) + "\n")
    return packed
