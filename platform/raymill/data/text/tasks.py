"""Preparation's work as Ray Data pipelines: one small item in, one small result out, in any order.

What the tasks do is in `unit.py`, `contamination.py` and `tokenizer.py`; this file only carries it
there and back. An error meant for the user comes back as a result, so that it arrives without
Ray's trace.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raymill.data.store.manifest import Contamination, Shard, Split, TokenizerIdentity
from raymill.data.store.split import TRAIN, unit_hash
from raymill.data.text import contamination, unit
from raymill.data.text.records import Bad, Reading, read_records
from raymill.data.text.sources import Unit
from raymill.errors import DataError, RaymillError
from raymill.schema.data_sections import TokenizerConfig

MIN_SAMPLE_BYTES = 1 << 20


def parallel(
    function: Callable[..., Any], items: Sequence[Any], *, shared: Any, tasks: int | None = None
) -> Iterator[Any]:
    """function(item, shared) for every item on the cluster; results as they come, in no fixed
    order.

    `tasks` limits how many run at once (None: one for each free core).

    Raises:
        RaymillError: the first one that a task raised.
    """
    import ray
    import ray.data

    # Ray Data sets its loggers up when it is imported; its own account of a run isn't for the user.
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # one large compressed file may take an hour
    cores = float(ray.cluster_resources().get("CPU", 1.0))
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


def _call(function: Callable[..., Any], shared: Any, row: dict[str, Any]) -> dict[str, Any]:
    import ray

    try:
        outcome = function(pickle.loads(row["item"]), ray.get(shared))
    except RaymillError as error:
        outcome = error
    return {"outcome": pickle.dumps(outcome)}


def do_unit(item: tuple[int, Unit], settings: unit.UnitSettings) -> tuple[unit.UnitResult, bool]:
    """The unit's result, and whether an earlier run had it finished."""
    index, pieces = item
    earlier = unit.finished(index, pieces, settings)
    if earlier is not None:
        return earlier, True
    return unit.run_unit(index, pieces, settings), False


def train_tokenizer(
    units: Sequence[Unit], reading: Reading, config: TokenizerConfig, folder: Path
) -> TokenizerIdentity:
    """Train on a task of its own, and save into `folder`."""
    import ray

    arguments = (units, reading, config, folder)
    outcome = ray.get(ray.remote(num_cpus=1)(_train_tokenizer).remote(*arguments))
    if isinstance(outcome, RaymillError):
        raise outcome
    identity: TokenizerIdentity = outcome
    return identity


def _train_tokenizer(
    units: Sequence[Unit], reading: Reading, config: TokenizerConfig, folder: Path
) -> TokenizerIdentity | RaymillError:
    from raymill.data.text import tokenizer as room

    try:
        tokenizer = room.train(training_sample(units, reading, config.train_bytes), config)
    except RaymillError as error:
        return error
    room.save(tokenizer, folder, config.end_of_text)
    return room.identity(tokenizer, config.end_of_text)


def training_sample(units: Sequence[Unit], reading: Reading, limit: int) -> Iterator[str]:
    """At most `limit` bytes of training text, an equal share from each unit, in the order of a
    seeded hash.

    Raises:
        DataError: there is no training text at all.
    """
    share = max(limit // max(len(units), 1), MIN_SAMPLE_BYTES)
    if (
        sum(piece.length for pieces in units for piece in pieces if piece.split != "validation")
        <= limit
    ):
        share = limit  # all of it fits (compressed input may still reach the limit)
    left, yielded = limit, False
    for index in sorted(range(len(units)), key=lambda i: (unit_hash(str(i), reading.seed), i)):
        if not left:
            break  # whatever is opened now is read for nothing
        unit_left = min(share, left)
        for text in _training_texts(units[index], reading):
            content = text.encode()
            text = (
                text if len(content) <= unit_left else content[:unit_left].decode(errors="ignore")
            )
            yielded = yielded or bool(text)
            yield text
            unit_left -= len(content)
            left -= min(len(content), left)
            if unit_left <= 0:
                break
    if not yielded:
        raise DataError("There is no usable training text: every record is bad, empty or held out.")


def _training_texts(pieces: Unit, reading: Reading) -> Iterator[str]:
    for piece in pieces:
        if piece.split == "validation":
            continue
        for record in read_records(piece, reading, hashlib.sha256()):
            if not isinstance(record, Bad) and record.split == TRAIN:
                yield record.text


def measure_contamination(
    folder: Path, splits: dict[str, Split], settings: unit.Settings, tasks: int | None
) -> Contamination:
    """Which held-out n-grams occur in training shards; see `contamination.py`."""
    shift = contamination.sampling_shift(splits["validation"])
    where = (folder, settings.dtype, settings.tokenizer.end_of_text_id, shift)
    counted = parallel(_count, splits["validation"].shards, shared=where, tasks=tasks)
    hashes, counts = contamination.merge_counts(counted)
    found = np.zeros(len(hashes), dtype=np.bool_)
    shared = (where, hashes)
    for packed in parallel(_occurring, splits["train"].shards, shared=shared, tasks=tasks):
        found |= np.unpackbits(packed, count=len(hashes)).astype(np.bool_)
    return contamination.summary(counts, found, shift)


def _count(shard: Shard, where: tuple[Path, str, int, int]) -> Any:
    folder, dtype, end_of_text_id, shift = where
    return contamination.count_ngrams(folder, shard, dtype, end_of_text_id, shift)


def _occurring(shard: Shard, shared: tuple[tuple[Path, str, int, int], Any]) -> Any:
    (folder, dtype, end_of_text_id, shift), hashes = shared
    return np.packbits(contamination.occurring(folder, shard, dtype, end_of_text_id, shift, hashes))
