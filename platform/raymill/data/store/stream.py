"""Stream of rows to each rank, in their exact order, through Ray Data.

One pipeline serves the whole worker group. It is cut into chunks: the rows of one rank for a few
consecutive steps. Chunk c belongs to rank c mod n, all chunks have equally many rows, and the
pipeline keeps their order, so `streaming_split` deals chunk c to rank c mod n. Ray Data doesn't
document that as a promise; therefore every row carries its global sample id, and the consumer
checks each id against the pure order.

Within a global batch, rows are assigned to ranks by their location: the batch is sorted by row
group and cut into n parts, so that the n ranks don't all read every row group.
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
from typing import TYPE_CHECKING

import numpy as np

from raymill.data.store.manifest import PreparedData, load_prepared
from raymill.data.store.order import Ints, Order, RowLocations
from raymill.data.store.rows import TOKEN_COLUMNS, AnyArray, Rows
from raymill.data.store.shards import read_row_group
from raymill.errors import DataError, RaymillError

if TYPE_CHECKING:
    from ray.data import DataIterator

CHUNK_WINDOWS = 4
CHUNK_BYTES = 64 * 2**20
# Cores that the task of a chunk claims: so little that it fits next to the workers.
READ_CPUS = 0.25


@dataclass(frozen=True)
class StepBatch:
    """Rows of one rank for one optimizer step, R of them, in the order of their global sample
    ids."""

    sample_id: Ints  # [R]
    source: Ints  # [R] number of each row's data source
    rows: Rows


@dataclass(frozen=True)
class StreamSpec:
    """Everything that determines the rows of every rank; small, because it travels with every task.

    `folders` are prepared folders, one per source of `order`. `chunk_rows` is the approximate
    number of rows per chunk (None: a few windows). `segment_chunks` is the number of chunks per
    rank and pipeline; the wait for a pipeline's first batch grows with it.

    Raises:
        DataError: a global batch can't be divided evenly among the ranks.
    """

    folders: tuple[Path, ...]
    order: Order
    global_batch: int
    world_size: int
    start_sample: int
    total_samples: int
    chunk_rows: int | None = None
    segment_chunks: int = 128

    def __post_init__(self) -> None:
        if self.global_batch % self.world_size:
            raise DataError(
                f"a global batch of {self.global_batch} can't be shared by {self.world_size} ranks"
            )

    @property
    def rank_rows(self) -> int:
        """Number of rows per rank and step."""
        return self.global_batch // self.world_size

    @property
    def steps_per_chunk(self) -> int:
        """Number of steps whose rows form one chunk."""
        return max(1, (self.chunk_rows or self._default_chunk_rows) // self.rank_rows)

    @property
    def _default_chunk_rows(self) -> int:
        """Rows per chunk for several windows, within memory.

        Chunks aren't aligned with windows, so the windows at both ends are read in part only:
        several windows per chunk keep that share small.
        """
        window = self.order.window_row_groups * max(s.row_group_rows for s in self.order.sources)
        return min(CHUNK_WINDOWS * window, CHUNK_BYTES // _row_bytes(self))

    @property
    def steps(self) -> int:
        """Number of steps from the start to the end of the run."""
        return max(0, self.total_samples - self.start_sample) // self.global_batch

    @property
    def segments(self) -> int:
        """Number of consecutive pipelines that the steps take."""
        return math.ceil(self.steps / (self.steps_per_chunk * self.segment_chunks))

    def chunks_in(self, segment: int) -> int:
        """Return the number of chunks per rank in a segment."""
        per_segment = self.steps_per_chunk * self.segment_chunks
        left = self.steps - segment * per_segment
        return math.ceil(min(left, per_segment) / self.steps_per_chunk)

    def rank_samples(self, first_step: int, steps: int, rank: int) -> tuple[Ints, RowLocations]:
        """Return a rank's global sample ids of `steps` steps, counted from the start, and their
        locations."""
        first = self.start_sample + first_step * self.global_batch
        count = steps * self.global_batch
        located = self.order.locate(first, count)
        sample = np.arange(first, first + count, dtype=np.int64)
        # One rank gets the whole batch, in order.
        if self.world_size == 1:
            return sample, located
        step = np.repeat(np.arange(steps), self.global_batch)
        # Sorted by step first, then by location: each rank gets neighbors within one global batch.
        by_location = np.lexsort(
            (sample, located.row_group, located.shard, located.source, step)
        ).reshape(steps, self.global_batch)
        selected = np.sort(
            by_location[:, rank * self.rank_rows : (rank + 1) * self.rank_rows], axis=1
        )
        chosen = selected.reshape(-1)
        return sample[chosen], RowLocations(
            located.source[chosen],
            located.epoch[chosen],
            located.shard[chosen],
            located.row_group[chosen],
            located.row[chosen],
        )


def build_iterators(spec: StreamSpec, segment: int) -> list[DataIterator]:
    """Build one iterator per rank over a segment's chunks; they can be sent to other processes."""
    import ray.data
    from ray.data import DataContext, ExecutionResources

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    # An evaluation may pause training for long, which isn't a stall.
    context.execution_no_progress_timeout_s = -1
    # A chunk must stay one block, or else `streaming_split` could deal out parts of it.
    context.target_max_block_size = 2**40
    chunk_bytes = spec.steps_per_chunk * spec.rank_rows * _row_bytes(spec)
    context.execution_options.resource_limits = ExecutionResources(
        # A few chunks per rank may be in memory; Ray Data would otherwise prefetch as many as fit.
        object_store_memory=max(64 * 2**20, 4 * spec.world_size * chunk_bytes)
    )
    chunks = spec.chunks_in(segment) * spec.world_size
    with DataContext.current(context):
        dataset = ray.data.range(chunks, override_num_blocks=chunks).map_batches(
            _read_chunk,
            fn_kwargs={"spec": spec, "segment": segment},
            batch_size=None,
            num_cpus=READ_CPUS,
        )
        return list(dataset.streaming_split(spec.world_size, equal=False))


def _row_bytes(spec: StreamSpec) -> int:
    manifest = _opened(spec.folders[0]).manifest
    dtypes = [manifest.dtype, *TOKEN_COLUMNS[manifest.kind].values()]
    return (manifest.sequence_length + 1) * sum(np.dtype(name).itemsize for name in dtypes) + 16


def _read_chunk(batch: dict[str, AnyArray], spec: StreamSpec, segment: int) -> dict[str, AnyArray]:
    """Read a chunk's rows by its number; a task of Ray Data.

    An error that Raymill raised travels as a column: so it arrives unchanged, and Ray Data doesn't
    retry the task.
    """
    chunk = int(batch["id"][0])
    step = (segment * spec.segment_chunks + chunk // spec.world_size) * spec.steps_per_chunk
    sample, located = spec.rank_samples(step, spec.steps_per_chunk, chunk % spec.world_size)
    try:
        return {"sample_id": sample, **read_rows(spec.folders, located).columns()}
    except RaymillError as error:
        return {"sample_id": sample, "error": np.full(len(sample), pickle.dumps(error), object)}


def read_rows(folders: tuple[Path, ...], located: RowLocations) -> Rows:
    """Read the rows at `located`, and each row group once.

    Raises:
        DataError: a row group is missing or damaged; names it and its file.
        StorageError: a file can't be read; names it.
    """
    manifest = _opened(folders[0]).manifest
    count, width = len(located.row), manifest.sequence_length + 1
    columns = {
        name: np.empty((count, *column.shape[1:]), dtype=column.dtype)
        for name, column in Rows.empty(width, manifest.dtype, manifest.kind).columns().items()
    }
    keys = np.stack([located.source, located.shard, located.row_group], axis=1)
    # Rows are read group by group, however they are ordered in the batch.
    groups, inverse = np.unique(keys, axis=0, return_inverse=True)
    by_group = np.argsort(inverse.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(inverse.reshape(-1), minlength=len(groups)))
    for (source, shard, group), stop, start in zip(
        groups.tolist(), ends, np.concatenate([[0], ends[:-1]]), strict=True
    ):
        selected = by_group[start:stop]
        rows = _row_groups.get(folders[source], shard, group).take(located.row[selected])
        rows = rows.with_source(source)
        for name, column in rows.columns().items():
            columns[name][selected] = column
    return Rows.from_columns(columns)


class _RowGroupCache:
    """Cache of recently read row groups: a window's are needed again where a chunk ends inside
    it."""

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


# The cache belongs to the process: Ray reuses a worker for many chunks.
_row_groups = _RowGroupCache(capacity=32)


@lru_cache(maxsize=16)
def _opened(folder: Path) -> PreparedData:
    return load_prepared(folder)


class RankStream:
    """Batches of one rank, step by step, each checked against the pure order.

    `open_segment` returns this rank's iterator over a segment's chunks; all ranks reach the same
    segment at the same step, so it may be a collective.
    """

    def __init__(
        self, spec: StreamSpec, rank: int, open_segment: Callable[[int], DataIterator]
    ) -> None:
        self.spec = spec
        self.rank = rank
        # Seconds spent waiting for rows since the start.
        self.wait_s = 0.0
        self._open_segment = open_segment
        self._opened: DataIterator | None = None
        # The first batch, while a thread reads it.
        self._first: Future[StepBatch] | None = None
        self._steps = self._run()

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def open(self) -> None:
        """Start reading the first batch in a thread, while the caller does something else.

        All ranks must call it at the same point.
        """
        if not self.spec.segments:
            return
        self._opened = self._open_segment(0)
        self._first = future = Future[StepBatch]()

        def read() -> None:
            try:
                future.set_result(next(self._steps))
            # Raised again where the batch is taken.
            except BaseException as error:
                future.set_exception(error)

        # A daemon thread, so that a read that hangs can't keep the process alive.
        Thread(target=read, name="raymill-first-batch", daemon=True).start()

    def __next__(self) -> StepBatch:
        started = time.perf_counter()
        try:
            if (first := self._first) is not None:
                self._first = None
                return first.result()
            return next(self._steps)
        finally:
            self.wait_s += time.perf_counter() - started

    def _run(self) -> Iterator[StepBatch]:
        step = 0
        for segment in range(self.spec.segments):
            opened, self._opened = self._opened, None
            if opened is None:
                opened = self._open_segment(segment)
            blocks = opened.iter_batches(batch_size=None, prefetch_batches=2, batch_format="numpy")
            end = step + self.spec.chunks_in(segment) * self.spec.steps_per_chunk
            # Requesting one more block, or opening the next segment early, would be a collective
            # that the other ranks don't join at this step.
            for block in islice(blocks, self.spec.chunks_in(segment)):
                yield from self._batches(block, step)
                step += self.spec.steps_per_chunk
            if step < end:
                raise DataError(
                    f"rank {self.rank}: the stream ended at step {step} of {self.spec.steps}"
                )

    def _batches(self, block: dict[str, AnyArray], first_step: int) -> Iterator[StepBatch]:
        expected, located = self.spec.rank_samples(first_step, self.spec.steps_per_chunk, self.rank)
        actual = block["sample_id"]
        if not np.array_equal(actual, expected):
            differ = np.flatnonzero(actual[: len(expected)] != expected[: len(actual)])
            index = int(differ[0]) if differ.size else min(len(actual), len(expected))
            raise DataError(
                f"rank {self.rank}: the stream is out of order at step {first_step} from the start: "
                f"expected {len(expected)} rows with global sample {_at(expected, index)} at index "
                f"{index}, found {len(actual)} rows with {_at(actual, index)}"
            )
        # The task couldn't read the chunk; see `_read_chunk`.
        if "error" in block:
            error: RaymillError = pickle.loads(block["error"][0])
            raise error
        rows, count = Rows.from_columns(block), self.spec.rank_rows
        # The last chunk may reach past the end of the run.
        steps = min(self.spec.steps_per_chunk, self.spec.steps - first_step)
        for start in range(0, steps * count, count):
            part = slice(start, start + count)
            yield StepBatch(actual[part], located.source[part], rows.take(part))


def _at(samples: Ints, index: int) -> str:
    return str(samples[index]) if index < len(samples) else "none"
