"""Ray Data pipelines for preparation: one small item in, one small result out, in any order.

The work is done in `unit.py`, `contamination.py` and `tokenizer.py`. An error meant for the user is
returned as a result, so that it arrives without Ray's trace.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from raymill.data.store.facts import Contamination
from raymill.data.store.manifest import Shard, Split, TokenizerIdentity
from raymill.data.store.split import TRAIN, hash_fraction
from raymill.data.text import contamination, unit
from raymill.data.text.documents import DocumentParser
from raymill.data.text.records import Bad, read_records
from raymill.data.text.shuffle import BucketSettings, KeyRange
from raymill.data.text.sources import Unit
from raymill.errors import DataError, RaymillError
from raymill.schema.data_sections import TokenizerConfig

if TYPE_CHECKING:
    import ray

Item = TypeVar("Item")
Shared = TypeVar("Shared")
Result = TypeVar("Result")

MIN_SAMPLE_BYTES = 1 << 20
# Results that one task of `reduced` combines.
FAN_IN = 16


def parallel(
    function: Callable[[Item, Shared], Result],
    items: Sequence[Item],
    *,
    shared: Shared,
    tasks: int | None = None,
) -> Iterator[Result]:
    """Yield function(item, shared) for every item, computed on the cluster, in no fixed order.

    `tasks` limits the number that run at once (None: one per free core).

    Raises:
        RaymillError: the first one that a task raised.
    """
    import ray
    import ray.data

    # Ray Data sets up its loggers when it is imported; its log of a run isn't meant for the user.
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # One large compressed file may take an hour.
    context.execution_no_progress_timeout_s = -1
    cores = float(ray.cluster_resources().get("CPU", 1.0))
    # More tasks than cores can only run at once if each claims less than a core.
    share = 1.0 if tasks is None else min(1.0, cores / tasks)
    rows = [{"item": pickle.dumps(item)} for item in items]
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            partial(_call, function, ray.put(shared)),
            num_cpus=share,
            compute=ray.data.TaskPoolStrategy(size=tasks and min(tasks, len(rows))),
        )
    for row in dataset.iter_rows():
        outcome = pickle.loads(row["outcome"])
        if isinstance(outcome, RaymillError):
            raise outcome
        yield outcome


def _call(
    function: Callable[[Item, Shared], Result], shared: ray.ObjectRef, row: dict[str, bytes]
) -> dict[str, bytes]:
    import ray

    outcome: Result | RaymillError
    try:
        outcome = function(pickle.loads(row["item"]), ray.get(shared))
    except RaymillError as error:
        outcome = error
    return {"outcome": pickle.dumps(outcome)}


def reduced(
    function: Callable[[Item, Shared], Result],
    combine: Callable[[Sequence[Result]], Result],
    items: Sequence[Item],
    *,
    shared: Shared,
    tasks: int | None = None,
) -> Result:
    """Return `combine` of function(item, shared) for all items, computed on the cluster in a tree.

    No process receives more than `FAN_IN` results at once, however many items there are. `tasks`: see
    `parallel`; `combine` must not depend on the order and grouping of results.

    Raises:
        RaymillError: the first one that a task raised.
    """
    import ray

    put = ray.put(shared)
    count = len(items) if tasks is None else min(tasks, len(items))
    # Every task takes a share of the items, one after the other.
    listed = list(items)
    shares = [listed[number::count] for number in range(count)]
    start = ray.remote(num_cpus=1)(_reduced_share)
    level = [start.remote(function, combine, share, put) for share in shares]
    join = ray.remote(num_cpus=1)(_reduced_results)
    while len(level) > 1:
        level = [
            join.remote(combine, *level[first : first + FAN_IN])
            for first in range(0, len(level), FAN_IN)
        ]
    outcome: Result | RaymillError = ray.get(level[0])
    if isinstance(outcome, RaymillError):
        raise outcome
    return outcome


def _reduced_share(
    function: Callable[[Item, Shared], Result],
    combine: Callable[[Sequence[Result]], Result],
    share: Sequence[Item],
    shared: Shared,
) -> Result | RaymillError:
    outcome = None
    try:
        for item in share:
            result = function(item, shared)
            outcome = result if outcome is None else combine([outcome, result])
    except RaymillError as error:
        return error
    assert outcome is not None, "a share has items"
    return outcome


def _reduced_results(
    combine: Callable[[Sequence[Result]], Result], *results: Result | RaymillError
) -> Result | RaymillError:
    good: list[Result] = []
    for result in results:
        if isinstance(result, RaymillError):
            return result
        good.append(result)
    return combine(good)


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
) -> list[Shard]:
    """Return the shards of shuffled documents, in the order of the buckets."""
    shards = dict(parallel(_pack_bucket, buckets, shared=settings, tasks=tasks))
    return [shard for bucket in buckets if (shard := shards[bucket.number]) is not None]


def _pack_bucket(bucket: KeyRange, settings: BucketSettings) -> tuple[int, Shard | None]:
    return bucket.number, unit.pack_bucket(bucket, settings)


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
    folder: Path, splits: dict[str, Split], settings: unit.Settings, tasks: int | None
) -> Contamination:
    """Measure the held-out n-grams that occur in training shards; see `contamination.py`."""
    shift = contamination.sampling_shift(splits["validation"])
    location = (folder, settings.dtype, settings.tokenizer.end_of_text_id, shift)
    hashes, counts = reduced(
        _count,
        contamination.merge_counts,
        splits["validation"].shards,
        shared=location,
        tasks=tasks,
    )
    # The held-out n-grams are few; training text is compared with them, shard by shard.
    packed = reduced(
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
