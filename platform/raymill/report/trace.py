"""Trace of rows to the documents that they hold: file, offset, length, and the text's beginning.

A run's sample is located by the order that the run's newest checkpoint recorded; a folder's row by its number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymill.checkpoint.manifest import CheckpointManifest, read_manifest
from raymill.checkpoint.retention import committed_steps
from raymill.data.store.blocks import SourceShape
from raymill.data.store.lineage import Traced, lineage_path, read_lineage
from raymill.data.store.manifest import (
    PreparedData,
    is_finished,
    load_prepared,
    read_tokenizer,
)
from raymill.data.store.manifest import read_manifest as read_data_manifest
from raymill.data.store.order import Order, SampleOrder
from raymill.data.store.order_v1 import OrderV1
from raymill.data.store.shards import read_row_group
from raymill.errors import ConfigError, DataError
from raymill.plan.mixture import max_epochs, mixture_changes
from raymill.reading import entries
from raymill.schema.data_sections import RowsConfig, ValidationConfig
from raymill.schema.identity import CAME_LATER
from raymill.schema.jobs import AuditJob
from raymill.schema.renamed import current_names

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Characters of a document's text that are shown.
SHOWN = 100
# A change of a mixture as a flattened key: `9000.wiki`, or `12.5%.wiki`.
_CHANGE = re.compile(r"(?P<point>\d+(\.\d+)?%|\d+)\.(?P<name>.+)")


@dataclass(frozen=True)
class _Row:
    """Row of a training shard: its number in the shard, and the row group and row that hold it."""

    data: PreparedData
    shard: int
    group: int
    row: int

    @property
    def number(self) -> int:
        return self.group * self.data.manifest.row_group_rows + self.row


def run(job: AuditJob) -> int:
    """Print the documents of a run's sample or step, or of a folder's row; return the exit code.

    Raises:
        ConfigError: there is no such run, sample or row.
        DataError: the data has no lineage, or it is damaged.
    """
    data = job.trace.data
    rows = _run_rows(job) if data is None else iter([_folder_row(job, data)])
    for title, row in rows:
        shard = row.data.manifest.splits["train"].shards[row.shard]
        print(f"{title}: row {row.number} of {row.data.shard_path(shard)}")
        for line in _lines(row):
            print(f"  {line}")
    return 0


def _folder_row(job: AuditJob, name: str) -> tuple[str, _Row]:
    folder = Path(name) if Path(name).is_absolute() else job.storage.folder / "data" / name
    data = load_prepared(folder)
    number = job.trace.row
    assert number is not None, "the checks require it"
    ends = np.cumsum(data.manifest.splits["train"].shards.column("rows"))
    if number >= ends[-1]:
        raise ConfigError([f"trace.row={number}: {folder} has {ends[-1]} training rows"])
    shard = int(np.searchsorted(ends, number, side="right"))
    inside = number - (int(ends[shard - 1]) if shard else 0)
    return f"row {number}", _Row(data, shard, *divmod(inside, data.manifest.row_group_rows))


def _run_rows(job: AuditJob) -> Iterator[tuple[str, _Row]]:
    """Yield the rows of the samples that were asked for, as the run's order locates them."""
    run_dir = job.storage.folder / "runs" / str(job.run.name)
    committed = committed_steps(run_dir / "checkpoints")
    if not committed:
        raise ConfigError(
            [f"run.name={job.run.name}: {run_dir} has no checkpoint, which tells its order"]
        )
    manifest = read_manifest(committed[-1][1])
    prepared = _prepared(manifest, job.storage.folder)
    order = order_of_run(manifest, prepared)
    if job.trace.sample is not None:
        first, count = job.trace.sample, 1
    else:
        assert job.trace.step is not None, "the checks require one of them"
        # Samples that the guard left out move the later steps.
        first, count = (
            _first_sample(run_dir, job.trace.step, order.global_batch),
            order.global_batch,
        )
    located = order.locate(first, count)
    for index in range(count):
        data = prepared[int(located.source[index])]
        place = int(located.shard[index]), int(located.row_group[index]), int(located.row[index])
        yield f"sample {first + index}", _Row(data, *place)


def _first_sample(run_dir: Path, step: int, batch: int) -> int:
    from raymill.track.follow import Follower, last_of_each_step

    events = last_of_each_step(Follower(run_dir / "metrics.jsonl").read(), "step")
    found = [event for event in events if event["step"] == step]
    if not found:
        raise ConfigError([f"trace.step={step}: {run_dir} has made no such step"])
    return int(found[-1]["samples"]) - batch


def _prepared(manifest: CheckpointManifest, root: Path) -> list[PreparedData]:
    """Return the folders that a run was trained on, found by their digests."""
    mixture = _flat_mapping(manifest.config, "data.mixture")
    folders = [
        *entries(root / "data"),
        *(Path(name) for name in mixture if Path(name).is_absolute()),
    ]
    by_digest = {
        read_data_manifest(folder).digest: folder for folder in folders if is_finished(folder)
    }
    missing = [digest[:12] for digest in manifest.data_digests if digest not in by_digest]
    if missing:
        raise DataError(
            f"No folder below {root / 'data'} has the manifest digest {', '.join(missing)}, on which the run "
            "was trained; restore it, or set storage.root."
        )
    return [load_prepared(by_digest[digest]) for digest in manifest.data_digests]


def order_of_run(manifest: CheckpointManifest, prepared: Sequence[PreparedData]) -> SampleOrder:
    """Return the order of a run's samples, from what its checkpoint recorded."""
    config = current_names(manifest.config)

    def stated(key: str) -> Any:
        return config.get(key, CAME_LATER.get(key))

    values = {field.name: stated(f"data.{field.name}") for field in fields(RowsConfig)}
    changes: dict[str, dict[str, float]] = {}
    for key, weight in _flat_mapping(config, "data.mixture_changes").items():
        if (match := _CHANGE.fullmatch(key)) is not None:
            changes.setdefault(match["point"], {})[match["name"]] = weight
    values |= {
        "mixture": _in_order(_flat_mapping(config, "data.mixture"), prepared),
        "mixture_changes": changes,
        "max_epochs": _flat_mapping(config, "data.max_epochs"),
    }
    data = RowsConfig(**{**values, "validation": ValidationConfig(0.0, None, None)})
    batch, steps = int(stated("train.global_batch")), stated("train.steps")
    if steps is None:
        # Changes by share of the run need its length, which is that of full rows.
        steps = -(-int(stated("train.tokens")) // (batch * data.sequence_length))
    weights = tuple(data.mixture.values()) or (1.0,)
    sources = [
        SourceShape(
            one.folder.name,
            weight,
            one.manifest.row_group_rows,
            one.manifest.splits["train"].shards.column("rows"),
            limit,
        )
        for one, weight, limit in zip(prepared, weights, max_epochs(data), strict=True)
    ]
    seed, window = int(stated("run.seed")), data.window_row_groups
    if manifest.order_version == OrderV1.version:
        return OrderV1(sources, seed, window, batch)
    return Order(sources, seed, window, batch, mixture_changes(data, int(steps), batch))


def _flat_mapping(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a mapping that was flattened into dotted keys."""
    return {
        name.removeprefix(f"{key}."): value
        for name, value in config.items()
        if name.startswith(f"{key}.")
    }


def _in_order(mixture: Mapping[str, float], prepared: Sequence[PreparedData]) -> dict[str, float]:
    """Return the weights in the order of the sources; a checkpoint's keys are sorted."""
    folders = [data.folder for data in prepared]
    names = [str(folder) if str(folder) in mixture else folder.name for folder in folders]
    return {name: mixture[name] for name in names} if mixture else {}


def _lines(row: _Row) -> Iterator[str]:
    """Yield a line for each document of a row."""
    manifest = row.data.manifest
    shard = manifest.splits["train"].shards[row.shard]
    if manifest.text is None:
        raise DataError(
            f"{row.data.folder} has no lineage: it was prepared before there was one, or isn't text. Prepare "
            "it again to trace its rows."
        )
    [file] = [one for one in manifest.text.lineage if one.path == lineage_path(shard.path)]
    rows = read_row_group(row.data.shard_path(shard), shard, row.group, manifest.dtype)
    tokenizer = _tokenizer(row.data.tokenizer_folder)
    for part in read_lineage(row.data.folder, file, row.number):
        ids = rows.tokens[row.row, part.first : part.last].tolist()
        yield f"{_described(part)}: {json.dumps(tokenizer.decode(ids)[:SHOWN], ensure_ascii=False)}"


def _described(part: Traced) -> str:
    origin = part.origin
    return (
        f"tokens {part.first} to {part.last - 1}: {origin.file}, offset {origin.offset}, length "
        f"{origin.length}, sha256 {origin.sha256.hex()[:12]}, from its token {part.token} on"
    )


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Tokenizer:
    return read_tokenizer(folder / "tokenizer.json")
