"""The stream on a real Ray Data: exact rows in exact order, for any world size, start and damage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.prepared_factory import write_prepared
from faults.weather import Weather
from raymill import reading
from raymill.data.store.blocks import SourceShape
from raymill.data.store.manifest import PreparedData
from raymill.data.store.order import Order
from raymill.data.store.reader import RowReader
from raymill.data.store.rows import Rows
from raymill.data.store.stream import RankStream, StepBatch, StreamSpec, _read_units, read_unit
from raymill.data.store.validation import ValidationSet
from raymill.errors import DataError, StorageError


def order_of(
    *prepared: PreparedData, weights: tuple[float, ...] = (1.0,), seed: int = 3, batch: int = 12
) -> Order:
    return Order(
        [
            SourceShape(
                str(i),
                weight,
                p.manifest.row_group_rows,
                tuple(s.rows for s in p.manifest.splits["train"].shards),
            )
            for i, (p, weight) in enumerate(zip(prepared, weights, strict=True))
        ],
        seed,
        2,
        batch,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_prepared(tmp_path_factory.mktemp("data"), shard_rows=(37, 22, 9, 1))


def spec_of(
    prepared: PreparedData, world: int, start: int = 0, steps: int = 12, **sizes: int
) -> StreamSpec:
    return StreamSpec(
        (prepared.folder,), order_of(prepared), world, start * 12, (start + steps) * 12, **sizes
    )


def rows_at(spec: StreamSpec, start: int, count: int) -> Rows:
    return RowReader(spec.folders).read(spec.order.locate(start, count))


def consume(spec: StreamSpec, slow_rank: int | None = None) -> list[list[StepBatch]]:
    """Return the batches of each rank, while all ranks read at once."""
    received: list[list[StepBatch]] = [[] for _ in range(spec.world_size)]
    errors: list[BaseException] = []

    def read(rank: int) -> None:
        try:
            for batch in RankStream(spec, rank):
                received[rank].append(batch)
                if rank == slow_rank:
                    time.sleep(0.05)
        except DataError as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(r,)) for r in range(spec.world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return received


def global_rows(received: list[list[StepBatch]]) -> list[tuple[int, bytes]]:
    """(sample id, tokens) of every row, step by step, in the order of sample ids."""
    rows = []
    for step in zip(*received, strict=True):
        ids = np.concatenate([batch.sample_id for batch in step])
        tokens = np.concatenate([batch.rows.tokens for batch in step])
        rows += [(int(ids[i]), tokens[i].tobytes()) for i in np.argsort(ids)]
    return rows


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_global_order_is_the_same_for_every_world_size(
    ray_session: None, prepared: PreparedData, world: int
) -> None:
    spec = spec_of(prepared, world, unit_rows=12 // world)  # several units per rank
    assert spec.steps_per_unit == 1
    rows = global_rows(consume(spec, slow_rank=world - 1))
    expected = rows_at(spec, 0, 144).tokens
    assert rows == [(i, tokens.tobytes()) for i, tokens in enumerate(expected)]


class Units:
    """A rank's iterator over units that were read before, or over an error."""

    def __init__(self, units: Sequence[pa.Table], error: Exception | None = None) -> None:
        self.units, self.error, self.asked = units, error, threading.Event()

    def iter_batches(self, **_: object) -> Iterator[pa.Table]:
        self.asked.set()
        if self.error is not None:
            raise self.error
        yield from self.units


def units_of(spec: StreamSpec, first_step: int = 0) -> list[pa.Table]:
    """The units of a pipeline, as Ray Data's tasks read them for rank 0."""
    return list(_read_units({"task": np.array([0])}, spec, 0, first_step))


def stream_of(spec: StreamSpec, units: Units) -> RankStream:
    return RankStream(spec, 0, lambda *_: units)  # type: ignore[arg-type, return-value]


def test_a_stream_that_was_opened_early_gives_the_same_batches(prepared: PreparedData) -> None:
    spec = spec_of(prepared, 1, steps=5, unit_rows=24)
    expected = rows_at(spec, 0, 60).tokens
    for early in (False, True):
        opened: list[int] = []

        def open_pipeline(
            spec: StreamSpec, rank: int, step: int, opened: list[int] = opened
        ) -> Any:
            opened.append(step)
            return Units(units_of(spec, step))

        stream = RankStream(spec, 0, open_pipeline)
        if early:
            stream.open()
        batches = list(stream)
        assert opened == [0], "a pipeline is opened once"
        assert [len(batch.sample_id) for batch in batches] == [12] * 5
        assert np.concatenate([batch.sample_id for batch in batches]).tolist() == list(range(60))
        np.testing.assert_array_equal(
            np.concatenate([batch.rows.tokens for batch in batches]), expected
        )


def test_the_first_batch_is_read_before_anyone_asks_for_it(prepared: PreparedData) -> None:
    spec = spec_of(prepared, 1, steps=2)
    units = Units(units_of(spec))
    stream = stream_of(spec, units)
    assert not units.asked.wait(0.05)
    stream.open()
    assert units.asked.wait(10)
    assert next(stream).sample_id.tolist() == list(range(12))


@pytest.mark.parametrize("error", [DataError("a shard is damaged"), RuntimeError("Ray has gone")])
def test_an_error_reaches_who_asks_for_the_batch(prepared: PreparedData, error: Exception) -> None:
    units = Units([], error)
    stream = stream_of(spec_of(prepared, 1), units)
    stream.open()
    assert units.asked.wait(10), "opening raises nothing"
    with pytest.raises(type(error), match=str(error)):
        next(stream)


@pytest.mark.parametrize(("what", "error"), [("away", StorageError), ("damaged", DataError)])
def test_the_error_that_kept_a_unit_from_being_read_arrives_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, error: type[Exception]
) -> None:
    """A shard that can't be read for now isn't one that is damaged."""
    prepared = write_prepared(tmp_path / "prepared", shard_rows=(40,))
    [shard] = prepared.manifest.splits["train"].shards
    path, spec = prepared.shard_path(shard), spec_of(prepared, 1, steps=2)
    assert spec.steps_per_unit > 2, "the manifest is read here, while it can be"
    monkeypatch.setattr(reading, "PAUSE_S", 0.0)
    weather = Weather(monkeypatch)
    if what == "away":
        weather.away(path, times=10**6)
    else:
        path.write_bytes(b"?" * shard.file_bytes)
    units = Units(units_of(spec))
    with pytest.raises(error, match=r"00000\.parquet"):
        next(stream_of(spec, units))


def test_pipelines_follow_one_another(prepared: PreparedData) -> None:
    spec = spec_of(prepared, 1, steps=7, unit_rows=12, task_units=3, pipeline_tasks=1)
    opened: list[int] = []

    def open_pipeline(spec: StreamSpec, rank: int, step: int) -> Any:
        opened.append(step)
        return Units(units_of(spec, step))

    ids = [batch.sample_id for batch in RankStream(spec, 0, open_pipeline)]
    assert np.concatenate(ids).tolist() == list(range(84))
    assert opened == [0, 3, 6]


def test_a_pipeline_that_gives_nothing_ends_the_stream(prepared: PreparedData) -> None:
    spec = spec_of(prepared, 1, steps=6, unit_rows=12)
    gives = [units_of(spec)[:2], []]
    stream = RankStream(spec, 0, lambda *_: Units(gives.pop(0)))  # type: ignore[arg-type, return-value]
    assert [len(next(stream).sample_id) for _ in range(2)] == [12, 12]
    with pytest.raises(DataError, match="rank 0: the stream ended at step 2 of 6"):
        next(stream)


def test_a_stream_without_steps_opens_nothing(prepared: PreparedData) -> None:
    def never(*_: object) -> Any:
        raise AssertionError("a pipeline was opened")

    stream = RankStream(spec_of(prepared, 1, start=3, steps=0), 0, never)
    stream.open()
    assert list(stream) == []


def test_any_restart_goes_on_where_it_stopped(ray_session: None, prepared: PreparedData) -> None:
    whole = global_rows(consume(spec_of(prepared, 1, steps=12)))
    # Several pipelines one after another.
    spec = spec_of(prepared, 2, start=5, steps=7, unit_rows=6, task_units=2, pipeline_tasks=2)
    assert global_rows(consume(spec)) == whole[60:]


def test_a_mixture_streams_every_source(ray_session: None, tmp_path: Path) -> None:
    one = write_prepared(tmp_path / "one", seed=1)
    two = write_prepared(tmp_path / "two", seed=2)
    order = order_of(one, two, weights=(0.75, 0.25), batch=8)
    spec = StreamSpec((one.folder, two.folder), order, 2, 0, 160)
    rows = global_rows(consume(spec))
    located = order.locate(0, 160)
    assert [tokens for _, tokens in rows] == [
        tokens.tobytes() for tokens in rows_at(spec, 0, 160).tokens
    ]
    assert int((located.source == 0).sum()) == 120


def test_seeking_far_costs_what_starting_costs(ray_session: None, prepared: PreparedData) -> None:
    seconds = []
    for start in (0, 10**8):
        spec = spec_of(prepared, 1, start=start, steps=1)
        began = time.perf_counter()
        ((batch,),) = consume(spec)
        seconds.append(time.perf_counter() - began)
        assert batch.sample_id[0] == start * 12
    assert seconds[1] < 5 * seconds[0] + 30, "reading up to there would take hours"


def test_a_flipped_byte_is_named_where_it_is_read(ray_session: None, tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "flip", shard_rows=(40,))
    path = prepared.shard_path(prepared.manifest.splits["train"].shards[0])
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"00000\.parquet.*row group"):
        consume(spec_of(prepared, 1, steps=4))


def test_a_stream_out_of_order_is_refused(prepared: PreparedData) -> None:
    spec = spec_of(prepared, 2)
    other = read_unit(spec, 1, 0, RowReader(spec.folders))
    with pytest.raises(DataError, match="rank 0: the stream is out of order at step 0"):
        next(stream_of(spec, Units([other])))


def test_ranks_share_a_batch_completely_and_by_place(prepared: PreparedData) -> None:
    spec = spec_of(prepared, 4)
    ids = [spec.rank_samples(2, 3, rank)[0] for rank in range(4)]
    assert sorted(np.concatenate(ids).tolist()) == list(range(24, 60))
    assert all(np.array_equal(part, np.sort(part)) for part in ids)
    with pytest.raises(DataError, match="can't be shared by 5"):
        spec_of(prepared, 5)


@pytest.mark.parametrize(("world", "batch", "rows"), [(1, 4, None), (2, 4, None), (3, 2, 17)])
def test_held_out_rows_are_shared_out_once(
    tmp_path: Path, world: int, batch: int, rows: int | None
) -> None:
    prepared = write_prepared(tmp_path, validation_rows=(7, 9, 5))
    sets = [
        ValidationSet(prepared.folder, rank=r, world_size=world, batch_rows=batch, rows=rows)
        for r in range(world)
    ]
    per_rank = [list(held_out) for held_out in sets]
    assert {len(batches) for batches in per_rank} == {len(sets[0])}
    found = sum(len(part) for batches in per_rank for part in batches)
    assert found == (rows or 21)
    if rows is None:
        size = sum(int(part.bytes.sum()) for batches in per_rank for part in batches)
        assert size == prepared.manifest.splits["validation"].bytes
