"""Rows in their exact order, through Ray Data, to each rank.

One pipeline serves the whole worker group. It is cut into units: the rows of one rank for a few
consecutive steps. Unit u belongs to rank u mod n, all units have equal rows, and the pipeline keeps
their order, so `streaming_split` deals unit u to rank u mod n. That isn't a documented promise of Ray
Data; so every row carries its global sample id, and the consumer checks each against the pure order.

Whose rows they are within a global batch is decided by where they lie: the batch is sorted by row group
and cut into n pieces, so that n ranks don't all read every row group.
"""

from __future__ import annotations

import math
import pickle
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raymill.data.store.manifest import Prepared, load_prepared
from raymill.data.store.order import Ints, Located, Order
from raymill.data.store.rows import TOKEN_COLUMNS, Rows
from raymill.data.store.shards import read_row_group
from raymill.errors import DataError, RaymillError

if TYPE_CHECKING:
    from ray.data import DataIterator

UNIT_WINDOWS = 4
UNIT_BYTES = 64 * 2**20
READ_CPUS = 0.25  # of a core that reading a unit claims: it must find room beside the workers


@dataclass(frozen=True)
class StepBatch:
    """One rank's rows of one optimizer step, R of them, in the order of their global sample ids."""

    sample_id: Ints  # [R]
    source: Ints  # [R] which of the data sources each row is of
    rows: Rows


@dataclass(frozen=True)
class StreamSpec:
    """Everything that determines who gets what; small, since it travels with every task.

    Raises:
        DataError: the ranks can't share a global batch evenly.
    """

    folders: tuple[Path, ...]  # prepared data, one a source of `order`
    order: Order
    global_batch: int
    world_size: int
    start_sample: int
    total_samples: int
    unit_rows: int | None = None  # about how many rows a unit holds; None: a few windows
    # Units a rank and pipeline; what its first batch waits for grows with them.
    segment_units: int = 128

    def __post_init__(self) -> None:
        if self.global_batch % self.world_size:
            raise DataError(
                f"a global batch of {self.global_batch} can't be shared by {self.world_size} ranks"
            )

    @property
    def rank_rows(self) -> int:
        """Rows a rank and step."""
        return self.global_batch // self.world_size

    @property
    def steps_per_unit(self) -> int:
        return max(1, (self.unit_rows or self._default_unit_rows) // self.rank_rows)

    @property
    def _default_unit_rows(self) -> int:
        """Units aren't aligned with windows, and one at either end is read for a part only: several
        windows a unit keep that small, within memory."""
        window = self.order.window_row_groups * max(s.row_group_rows for s in self.order.sources)
        return min(UNIT_WINDOWS * window, UNIT_BYTES // _row_bytes(self))

    @property
    def steps(self) -> int:
        """Steps from the start to the end of the run."""
        return max(0, self.total_samples - self.start_sample) // self.global_batch

    @property
    def segments(self) -> int:
        """Pipelines, one after another, that the steps take."""
        return math.ceil(self.steps / (self.steps_per_unit * self.segment_units))

    def units_in(self, segment: int) -> int:
        """Units a rank has in a segment."""
        per_segment = self.steps_per_unit * self.segment_units
        left = self.steps - segment * per_segment
        return math.ceil(min(left, per_segment) / self.steps_per_unit)

    def rank_samples(self, first_step: int, steps: int, rank: int) -> tuple[Ints, Located]:
        """A rank's global sample ids of `steps` steps, counted from the start, and where they lie."""
        first = self.start_sample + first_step * self.global_batch
        count = steps * self.global_batch
        located = self.order.locate(first, count)
        sample = np.arange(first, first + count, dtype=np.int64)
        if self.world_size == 1:
            return sample, located
        step = np.repeat(np.arange(steps), self.global_batch)
        by_place = np.lexsort(
            (sample, located.row_group, located.shard, located.source, step)
        ).reshape(steps, self.global_batch)
        mine = np.sort(by_place[:, rank * self.rank_rows : (rank + 1) * self.rank_rows], axis=1)
        chosen = mine.reshape(-1)
        return sample[chosen], Located(
            located.source[chosen],
            located.epoch[chosen],
            located.shard[chosen],
            located.row_group[chosen],
            located.row[chosen],
        )


def build_iterators(spec: StreamSpec, segment: int) -> list[DataIterator]:
    """One iterator a rank over a segment's units; they can be sent to other processes."""
    import ray.data
    from ray.data import DataContext, ExecutionResources

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = -1  # an evaluation may pause training for long
    context.target_max_block_size = 2**40  # a unit must stay one block
    unit_bytes = spec.steps_per_unit * spec.rank_rows * _row_bytes(spec)
    context.execution_options.resource_limits = ExecutionResources(
        object_store_memory=max(64 * 2**20, 4 * spec.world_size * unit_bytes)
    )
    units = spec.units_in(segment) * spec.world_size
    with DataContext.current(context):
        dataset = ray.data.range(units, override_num_blocks=units).map_batches(
            _read_unit,
            fn_kwargs={"spec": spec, "segment": segment},
            batch_size=None,
            num_cpus=READ_CPUS,
        )
        return list(dataset.streaming_split(spec.world_size, equal=False))


def _row_bytes(spec: StreamSpec) -> int:
    manifest = _opened(spec.folders[0]).manifest
    kept = [manifest.dtype, *TOKEN_COLUMNS[manifest.kind].values()]
    return (manifest.sequence_length + 1) * sum(np.dtype(of).itemsize for of in kept) + 16


def _read_unit(
    batch: dict[str, npt.NDArray[Any]], spec: StreamSpec, segment: int
) -> dict[str, npt.NDArray[Any]]:
    """Ray Data's task: unit number → its rows.

    An error that was raised on purpose travels as a column: it arrives as it is, and isn't tried again here.
    """
    unit = int(batch["id"][0])
    step = (segment * spec.segment_units + unit // spec.world_size) * spec.steps_per_unit
    sample, located = spec.rank_samples(step, spec.steps_per_unit, unit % spec.world_size)
    try:
        return {"sample_id": sample, **read_rows(spec.folders, located).columns()}
    except RaymillError as error:
        return {"sample_id": sample, "error": np.full(len(sample), pickle.dumps(error), object)}


def read_rows(folders: tuple[Path, ...], located: Located) -> Rows:
    """The rows at `located`; each row group is read once.

    Raises:
        DataError: names the file and row group that is missing or damaged.
        StorageError: names the file that can't be read.
    """
    manifest = _opened(folders[0]).manifest
    count, width = len(located.row), manifest.sequence_length + 1
    found = {
        name: np.empty((count, *column.shape[1:]), dtype=column.dtype)
        for name, column in Rows.empty(width, manifest.dtype, manifest.kind).columns().items()
    }
    places = np.stack([located.source, located.shard, located.row_group], axis=1)
    groups, inverse = np.unique(places, axis=0, return_inverse=True)
    by_group = np.argsort(inverse.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(inverse.reshape(-1), minlength=len(groups)))
    for (source, shard, group), stop, start in zip(
        groups.tolist(), ends, np.concatenate([[0], ends[:-1]]), strict=True
    ):
        mine = by_group[start:stop]
        rows = _row_groups.get(folders[source], shard, group).take(located.row[mine])
        rows = rows.of_source(source)
        for name, column in rows.columns().items():
            found[name][mine] = column
    return Rows.of(found)


class _RowGroupCache:
    """The row groups read last: a window's are needed again where a unit ends inside it."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rows: OrderedDict[tuple[Path, int, int], Rows] = OrderedDict()

    def get(self, folder: Path, shard_index: int, group: int) -> Rows:
        key = (folder, shard_index, group)
        if key in self._rows:
            self._rows.move_to_end(key)
            return self._rows[key]
        prepared = _opened(folder)
        shard = prepared.manifest.splits["train"].shards[shard_index]
        manifest = prepared.manifest
        path = prepared.shard_path(shard)
        rows = read_row_group(path, shard, group, manifest.dtype, manifest.kind)
        self._rows[key] = rows
        if len(self._rows) > self._capacity:
            self._rows.popitem(last=False)
        return rows


_row_groups = _RowGroupCache(capacity=32)


@lru_cache(maxsize=16)
def _opened(folder: Path) -> Prepared:
    return load_prepared(folder)


class RankStream:
    """One rank's batches, a step at a time, each checked against the pure order.

    `open_segment` gives this rank's iterator over a segment's units; all ranks reach the same segment
    at the same step, so it may communicate.
    """

    def __init__(
        self, spec: StreamSpec, rank: int, open_segment: Callable[[int], DataIterator]
    ) -> None:
        self.spec = spec
        self.rank = rank
        self.wait_s = 0.0  # spent waiting for rows since the start
        self._open_segment = open_segment
        self._opened: DataIterator | None = None
        self._first: Future[StepBatch] | None = None  # the first batch, while it is being read
        self._steps = self._run()

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def open(self) -> None:
        """Start reading the first batch in a thread, while the caller does something else; all ranks must call
        it at the same point."""
        if not self.spec.segments:
            return
        self._opened = self._open_segment(0)
        self._first = future = Future[StepBatch]()

        def read() -> None:
            try:
                future.set_result(next(self._steps))
            except BaseException as error:  # raised by who asks for the batch
                future.set_exception(error)

        Thread(target=read, name="raymill-first-batch", daemon=True).start()

    def __next__(self) -> StepBatch:
        began = time.perf_counter()
        try:
            if (first := self._first) is not None:
                self._first = None
                return first.result()
            return next(self._steps)
        finally:
            self.wait_s += time.perf_counter() - began

    def _run(self) -> Iterator[StepBatch]:
        step = 0
        for segment in range(self.spec.segments):
            opened, self._opened = self._opened, None
            if opened is None:
                opened = self._open_segment(segment)
            blocks = opened.iter_batches(batch_size=None, prefetch_batches=2, batch_format="numpy")
            end = step + self.spec.units_in(segment) * self.spec.steps_per_unit
            # No block more is asked for, nor the next segment opened, than on the other ranks at this step.
            for block in islice(blocks, self.spec.units_in(segment)):
                yield from self._unit(block, step)
                step += self.spec.steps_per_unit
            if step < end:
                raise DataError(
                    f"rank {self.rank}: the stream ended at step {step} of {self.spec.steps}"
                )

    def _unit(self, block: dict[str, npt.NDArray[Any]], first_step: int) -> Iterator[StepBatch]:
        expected, located = self.spec.rank_samples(first_step, self.spec.steps_per_unit, self.rank)
        found = block["sample_id"]
        if not np.array_equal(found, expected):
            differ = np.flatnonzero(found[: len(expected)] != expected[: len(found)])
            where = int(differ[0]) if differ.size else min(len(found), len(expected))
            raise DataError(
                f"rank {self.rank}: the stream is out of order at step {first_step} from the start: "
                f"expected {len(expected)} rows with global sample {_at(expected, where)} at place "
                f"{where}, found {len(found)} with {_at(found, where)}"
            )
        if "error" in block:
            error: RaymillError = pickle.loads(block["error"][0])
            raise error
        rows, count = Rows.of(block), self.spec.rank_rows
        steps = min(self.spec.steps_per_unit, self.spec.steps - first_step)
        for start in range(0, steps * count, count):
            part = slice(start, start + count)
            yield StepBatch(found[part], located.source[part], rows.take(part))


def _at(samples: Ints, index: int) -> str:
    return str(samples[index]) if index < len(samples) else "none"
