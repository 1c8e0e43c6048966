"""Stream of a rank's rows, in their exact order, through Ray Data.

Each rank has a pipeline of its own: one reading task at a time, on the rank's node, which yields
units. A unit holds the rows of a few consecutive steps. The rank computes the sample ids that it
must receive and compares them with those that came; nothing here depends on the other ranks, and
nothing grows with their number.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raymill.data.store.blocks import RowLocations
from raymill.data.store.hashing import Ints
from raymill.data.store.order import SampleOrder
from raymill.data.store.reader import OPEN_BYTES, RowReader, opened_folder
from raymill.data.store.rows import Rows
from raymill.errors import DataError, RaymillError

if TYPE_CHECKING:
    from ray.data import DataIterator

UNIT_BYTES = 8 * 2**20
# Units of a rank that exist at once: the one that is read, those that the reading task has yielded,
# that its execution has taken, and that are fetched ahead, 2 or 3 of each; and the one in use.
UNITS_IN_MEMORY = 10
# A reading task's successor may be another process, which reads the open row groups again: a task
# uses so many of them up that this doesn't count.
TASK_ROW_GROUPS = 16
TASK_UNITS = 128
PIPELINE_TASKS = 64


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

    `folders` are prepared folders, one per source of `order`. `unit_rows` is the approximate number
    of rows per unit (None: by bytes); `task_units` and `pipeline_tasks` limit a reading task and a
    pipeline.

    Raises:
        DataError: a global batch can't be divided evenly among the ranks.
    """

    folders: tuple[Path, ...]
    order: SampleOrder
    world_size: int
    start_sample: int
    total_samples: int
    unit_rows: int | None = None
    task_units: int | None = None
    pipeline_tasks: int = PIPELINE_TASKS

    def __post_init__(self) -> None:
        if self.global_batch % self.world_size:
            raise DataError(
                f"a global batch of {self.global_batch} can't be shared by {self.world_size} ranks"
            )

    @property
    def global_batch(self) -> int:
        """Number of rows per step, of all ranks."""
        return self.order.global_batch

    @property
    def rank_rows(self) -> int:
        """Number of rows per rank and step."""
        return self.global_batch // self.world_size

    @property
    def steps(self) -> int:
        """Number of steps from the start to the end of the run."""
        return max(0, self.total_samples - self.start_sample) // self.global_batch

    @property
    def steps_per_unit(self) -> int:
        """Number of steps whose rows form one unit."""
        # Row groups that don't all fit are read again for each unit, so units are larger then.
        size = UNIT_BYTES if open_bytes(self) <= OPEN_BYTES else OPEN_BYTES // 16
        rows = self.unit_rows or size // row_bytes(self.folders[0])
        return max(1, rows // self.rank_rows)

    @property
    def steps_per_task(self) -> int:
        """Number of steps that one reading task reads."""
        row_group_rows = max(source.row_group_rows for source in self.order.sources)
        used_up = math.ceil(TASK_ROW_GROUPS * row_group_rows / self.steps_per_unit)
        return self.steps_per_unit * (self.task_units or max(TASK_UNITS, used_up))

    def rank_samples(self, first_step: int, steps: int, rank: int) -> tuple[Ints, RowLocations]:
        """Return a rank's global sample ids of `steps` steps, counted from the start, and their
        locations."""
        first = self.start_sample + first_step * self.global_batch
        return self.order.rank_rows(first, steps, rank, self.world_size)


def row_bytes(folder: Path) -> int:
    """Return the bytes of one row of a prepared folder in memory."""
    manifest = opened_folder(folder).manifest
    empty = Rows.empty(manifest.sequence_length + 1, manifest.dtype, manifest.kind)
    return sum(math.prod(column.shape[1:]) * column.itemsize for column in empty.columns().values())


def open_bytes(spec: StreamSpec) -> int:
    """Return the bytes that suffice for the row groups that a rank has in use.

    A global batch's rows come from as many row groups (from more with several sources, or if it is
    small), of which each rank has its share: twice, since in the steps of a unit some follow
    others, and since with several sources a rank also gets rows of other ranks' row groups.
    """
    sources = spec.order.sources
    in_use = spec.global_batch + len(sources) * spec.order.window_row_groups
    row_groups = 2 * (math.ceil(in_use / spec.world_size) + len(sources))
    rows = max(source.row_group_rows for source in sources)
    return row_groups * rows * row_bytes(spec.folders[0])


def reading_bytes(spec: StreamSpec) -> int:
    """Return the bound of the host memory in which a rank's rows are read and delivered: the row
    groups in use, and the units between the reading task and the step."""
    unit = spec.steps_per_unit * spec.rank_rows * row_bytes(spec.folders[0])
    return min(open_bytes(spec), OPEN_BYTES) + UNITS_IN_MEMORY * unit


def open_pipeline(spec: StreamSpec, rank: int, first_step: int) -> DataIterator:
    """Build a rank's pipeline from a step on; it reads when it is iterated over."""
    import ray
    import ray.data
    from ray.data import TaskPoolStrategy

    from raymill.cluster.lean_data import lean, lean_context

    tasks = min(spec.pipeline_tasks, math.ceil((spec.steps - first_step) / spec.steps_per_task))
    with lean_context() as context:
        context.execution_options.preserve_order = True
        # An evaluation may pause training for long, which isn't a stall.
        context.execution_no_progress_timeout_s = -1
        # A unit is a block of one row. Any row is larger than this, so no block gets two.
        context.target_max_block_size = 1
        # Other ways to make a data set run tasks that claim a core, which may never be free.
        dataset = ray.data.from_blocks([pa.table({"task": [task]}) for task in range(tasks)])
        dataset = dataset.map_batches(
            _read_units,
            fn_kwargs={"spec": spec, "rank": rank, "first_step": first_step},
            batch_size=None,
            # A task lasts as long as the training of its rows. If it claimed a part of a core, those
            # of all ranks might not fit on a node next to the workers, and all would wait forever.
            num_cpus=0,
            # The tasks of a rank follow one another, so that row groups are read once.
            compute=TaskPoolStrategy(size=1),
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
            fallback_strategy=[{"label_selector": {}}],
        )
        return lean(dataset).iterator()


def _read_units(
    batch: dict[str, Ints], spec: StreamSpec, rank: int, first_step: int
) -> Iterator[pa.Table]:
    """Yield a rank's units, as a task of Ray Data does."""
    start = first_step + int(batch["task"][0]) * spec.steps_per_task
    reader = _reader(spec)
    for step in range(start, min(start + spec.steps_per_task, spec.steps), spec.steps_per_unit):
        unit = read_unit(spec, rank, step, reader)
        yield unit
        if "error" in unit.column_names:
            return


# Ray reuses a process for the next task, which then finds the open row groups.
_readers: dict[tuple[Path, ...], RowReader] = {}


def _reader(spec: StreamSpec) -> RowReader:
    if spec.folders not in _readers:
        # Another run's row groups are of no use any more.
        _readers.clear()
        _readers[spec.folders] = RowReader(spec.folders)
    reader = _readers[spec.folders]
    reader.open_bytes = min(OPEN_BYTES, open_bytes(spec))
    return reader


def read_unit(spec: StreamSpec, rank: int, first_step: int, reader: RowReader) -> pa.Table:
    """Read the rows of a unit: a table of one row, with a list for each column of `Rows`.

    An error that Raymill raised becomes a column: so it arrives unchanged, and Ray Data doesn't
    retry the task.
    """
    sample, located = spec.rank_samples(first_step, _unit_steps(spec, first_step), rank)
    try:
        columns = reader.read(located).columns()
    except RaymillError as error:
        columns = {"error": np.frombuffer(pickle.dumps(error), dtype=np.uint8)}
    columns["sample_id"] = sample
    lists = {}
    for name, column in columns.items():
        flat = pa.array(column.reshape(-1))
        lists[name] = pa.LargeListArray.from_arrays(pa.array([0, len(flat)], pa.int64()), flat)
    return pa.table(lists)


def _unit_steps(spec: StreamSpec, first_step: int) -> int:
    return min(spec.steps_per_unit, spec.steps - first_step)


class RankStream:
    """Batches of one rank, step by step, each checked against the pure order.

    `open_pipeline` opens the rank's pipeline from a step on.
    """

    def __init__(
        self,
        spec: StreamSpec,
        rank: int,
        open_pipeline: Callable[[StreamSpec, int, int], DataIterator] = open_pipeline,
    ) -> None:
        self.spec = spec
        self.rank = rank
        # Seconds spent waiting for rows since the start.
        self.wait_s = 0.0
        self._open_pipeline = open_pipeline
        self._opened: DataIterator | None = None
        # The first batch, while a thread reads it.
        self._first: Future[StepBatch] | None = None
        self._steps = self._run()

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def open(self) -> None:
        """Start reading the first batch in a thread, while the caller does something else."""
        if not self.spec.steps:
            return
        # Not in the thread: modules are imported here, while this process imports others.
        self._opened = self._open_pipeline(self.spec, self.rank, 0)
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
        while step < self.spec.steps:
            before = step
            opened, self._opened = self._opened, None
            if opened is None:
                opened = self._open_pipeline(self.spec, self.rank, step)
            units = iter(
                opened.iter_batches(batch_size=None, prefetch_batches=2, batch_format="pyarrow")
            )
            for unit in units:
                for batch in self._batches(unit, step):
                    step += 1
                    if step == self.spec.steps:
                        # The execution ends here, and not while the process ends.
                        for _ in units:
                            pass
                    yield batch
            if step == before:
                raise DataError(
                    f"rank {self.rank}: the stream ended at step {step} of {self.spec.steps}"
                )

    def _batches(self, unit: pa.Table, first_step: int) -> Iterator[StepBatch]:
        steps, count = _unit_steps(self.spec, first_step), self.spec.rank_rows
        expected, located = self.spec.rank_samples(first_step, steps, self.rank)
        columns = {name: unit.column(name).chunk(0).values.to_numpy() for name in unit.column_names}
        actual = columns.pop("sample_id")
        if not np.array_equal(actual, expected):
            differ = np.flatnonzero(actual[: len(expected)] != expected[: len(actual)])
            index = int(differ[0]) if differ.size else min(len(actual), len(expected))
            raise DataError(
                f"rank {self.rank}: the stream is out of order at step {first_step} from the start: "
                f"expected {len(expected)} rows with global sample {_at(expected, index)} at index "
                f"{index}, found {len(actual)} rows with {_at(actual, index)}"
            )
        # The task couldn't read the unit; see `read_unit`.
        if "error" in columns:
            error: RaymillError = pickle.loads(columns["error"].tobytes())
            raise error
        rows = Rows.from_columns(
            {
                # Values per token are [rows, tokens], values per row are [rows].
                name: column if len(column) == len(actual) else column.reshape(len(actual), -1)
                for name, column in columns.items()
            }
        )
        for start in range(0, steps * count, count):
            part = slice(start, start + count)
            yield StepBatch(actual[part], located.source[part], rows.take(part))


def _at(samples: Ints, index: int) -> str:
    return str(samples[index]) if index < len(samples) else "none"
