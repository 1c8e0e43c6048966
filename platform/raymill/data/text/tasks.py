"""Work of a preparation of text that runs in tasks on the cluster.

It is done in `unit.py`, `contamination.py` and `tokenizer.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raymill.data import cluster_tasks
from raymill.data.sources.documents import DocumentParser
from raymill.data.sources.format import Bad
from raymill.data.sources.inputs import Unit
from raymill.data.sources.records import read_records
from raymill.data.store.facts import Contamination
from raymill.data.store.manifest import Shard, Split, TokenizerIdentity
from raymill.data.store.split import TRAIN, hash_fraction
from raymill.data.text import contamination, unit
from raymill.data.text.shard_packer import PackedShard
from raymill.data.text.shuffle import BucketSettings, KeyRange, pack_bucket
from raymill.data.text.text_unit import Settings
from raymill.errors import DataError, RaymillError
from raymill.schema.data_sections import TokenizerConfig

MIN_SAMPLE_BYTES = 1 << 20


def prepare_unit(
    item: tuple[int, Unit], settings: unit.UnitSettings
) -> tuple[unit.UnitResult, bool]:
    """Return the unit's result, and whether an earlier run had finished it."""
    index, spans = item
    earlier = unit.finished(index, spans, settings)
    if earlier is not None:
        return earlier, True
    return unit.run_unit(index, spans, settings), False


def pack_buckets(
    buckets: Sequence[KeyRange], settings: BucketSettings, tasks: int | None
) -> list[PackedShard]:
    """Return the shards of shuffled documents, in the order of the buckets."""
    shards = dict(cluster_tasks.parallel(_pack_bucket, buckets, shared=settings, tasks=tasks))
    return [shard for bucket in buckets if (shard := shards[bucket.number]) is not None]


def _pack_bucket(bucket: KeyRange, settings: BucketSettings) -> tuple[int, PackedShard | None]:
    return bucket.number, pack_bucket(bucket, settings)


def train_tokenizer(
    units: Sequence[Unit], parser: DocumentParser, config: TokenizerConfig, folder: Path
) -> TokenizerIdentity:
    """Train the tokenizer in a task of its own, and save it into `folder`."""
    import ray

    arguments = (units, parser, config, folder)
    outcome = ray.get(ray.remote(num_cpus=1)(_train_tokenizer).remote(*arguments))
    if isinstance(outcome, RaymillError):
        raise outcome
    identity: TokenizerIdentity = outcome
    return identity


def _train_tokenizer(
    units: Sequence[Unit], parser: DocumentParser, config: TokenizerConfig, folder: Path
) -> TokenizerIdentity | RaymillError:
    from raymill.data.text import tokenizer as text_tokenizer

    try:
        tokenizer = text_tokenizer.train(training_sample(units, parser, config.train_bytes), config)
    except RaymillError as error:
        return error
    text_tokenizer.save(tokenizer, folder, config.end_of_text)
    return text_tokenizer.identity(tokenizer, config.end_of_text)


def training_sample(units: Sequence[Unit], parser: DocumentParser, limit: int) -> Iterator[str]:
    """Yield at most `limit` bytes of training text, an equal share per unit, in a seeded random
    order.

    Raises:
        DataError: there is no training text at all.
    """
    share = max(limit // max(len(units), 1), MIN_SAMPLE_BYTES)
    if sum(span.length for spans in units for span in spans if span.split != "validation") <= limit:
        # Everything fits, although compressed input may still reach the limit.
        share = limit
    bytes_left, yielded = limit, False
    for index in sorted(range(len(units)), key=lambda i: (hash_fraction(str(i), parser.seed), i)):
        # Another unit would be opened and read for nothing.
        if not bytes_left:
            break
        unit_bytes_left = min(share, bytes_left)
        for text in _training_texts(units[index], parser):
            content = text.encode()
            text = (
                text
                if len(content) <= unit_bytes_left
                else content[:unit_bytes_left].decode(errors="ignore")
            )
            yielded = yielded or bool(text)
            yield text
            unit_bytes_left -= len(content)
            bytes_left -= min(len(content), bytes_left)
            if unit_bytes_left <= 0:
                break
    if not yielded:
        raise DataError("There is no usable training text: every record is bad, empty or held out.")


def _training_texts(spans: Unit, parser: DocumentParser) -> Iterator[str]:
    for span in spans:
        if span.split == "validation":
            continue
        for record in read_records(span, parser, hashlib.sha256()):
            if not isinstance(record, Bad) and record.split == TRAIN:
                yield record.text


def measure_contamination(
    folder: Path, splits: dict[str, Split], settings: Settings, tasks: int | None
) -> Contamination:
    """Measure the held-out n-grams that occur in training shards; see `contamination.py`."""
    shift = contamination.sampling_shift(splits["validation"])
    location = (folder, settings.dtype, settings.tokenizer.end_of_text_id, shift)
    hashes, counts = cluster_tasks.reduced(
        _count,
        contamination.merge_counts,
        splits["validation"].shards,
        shared=location,
        tasks=tasks,
    )
    # The held-out n-grams are few; training text is compared with them, shard by shard.
    packed = cluster_tasks.reduced(
        _occurring,
        np.bitwise_or.reduce,
        splits["train"].shards,
        shared=(location, hashes),
        tasks=tasks,
    )
    occurs = np.unpackbits(packed, count=len(hashes)).astype(np.bool_)
    return contamination.summary(counts, occurs, shift)


def _count(
    shard: Shard, location: tuple[Path, str, int, int]
) -> tuple[contamination.Hashes, NDArray[np.int64]]:
    folder, dtype, end_of_text_id, shift = location
    return contamination.count_ngrams(folder, shard, dtype, end_of_text_id, shift)


def _occurring(
    shard: Shard, shared: tuple[tuple[Path, str, int, int], contamination.Hashes]
) -> NDArray[np.uint8]:
    (folder, dtype, end_of_text_id, shift), hashes = shared
    return np.packbits(contamination.occurring(folder, shard, dtype, end_of_text_id, shift, hashes))
