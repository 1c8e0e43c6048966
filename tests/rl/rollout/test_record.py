"""A record holds what was sampled, and a file is that record or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymill.errors import DataError
from raymill.rl.rollout.engine import BatchResult
from raymill.rl.rollout.pool import LocalPool
from raymill.rl.rollout.record import RolloutRecord, read_rollout, rollout_path, write_rollout
from rl.rollout.faults import ToySpec
from rl.rollout.tiny import SAMPLING, batches, prompts


@pytest.fixture
def results(tmp_path: Path) -> list[BatchResult]:
    import torch

    with LocalPool(ToySpec(tmp_path)) as pool:
        pool.sync([("a", torch.ones(3))], 17)
        return list(pool.generate(batches(2), SAMPLING).results)


@pytest.fixture
def rollout(results: list[BatchResult]) -> RolloutRecord:
    scores = {"exact": np.linspace(0, 1, 20).tolist(), "judge": [0.5] * 19 + [float("nan")]}
    return RolloutRecord.from_results(2, SAMPLING, results).with_rewards(scores)


def everything(rollout: RolloutRecord) -> dict[str, Any]:
    """Return all fields as plain values that can be compared."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.dtype.str, value.tobytes()
        if isinstance(value, tuple):
            return [plain(one) for one in value]
        return (
            {name: plain(one) for name, one in value.items()} if isinstance(value, dict) else value
        )

    return {name: plain(value) for name, value in vars(rollout).items()}


def test_groups_stand_together_with_what_was_sampled(
    results: list[BatchResult], rollout: RolloutRecord
) -> None:
    assert len(rollout) == 20
    assert rollout.sample_id.tolist() == [sample for sample in sorted(prompts(2)) for _ in range(4)]
    assert rollout.number.tolist() == [0, 1, 2, 3] * 5
    assert set(rollout.version.tolist()) == {17}
    found = {}
    for result in reversed(results):
        for answer, seed, completion in zip(
            result.batch.answers, result.batch.seeds, result.completions, strict=True
        ):
            found[answer] = (seed, completion)
    for row, (sample, number) in enumerate(zip(rollout.sample_id, rollout.number, strict=True)):
        seed, completion = found[sample, number]
        assert rollout.seed[row] == seed
        assert rollout.prompts[row].tolist() == prompts(2)[sample]
        assert rollout.answers[row].tolist() == completion.ids.tolist()
        assert rollout.log_probs[row].tolist() == completion.log_probs.tolist()
        assert rollout.stopped[row] == completion.stopped
    assert everything(RolloutRecord.from_results(2, SAMPLING, results[::-1])) == everything(
        replace(rollout, rewards={})
    )


def test_a_file_is_read_as_it_was_written(tmp_path: Path, rollout: RolloutRecord) -> None:
    path = rollout_path(tmp_path / "dump", 2)
    assert path.name == "step-00000002.parquet"
    for record in (
        rollout,
        replace(rollout, rewards={}),
        RolloutRecord.from_results(3, SAMPLING, []),
    ):
        write_rollout(path, record)
        assert everything(read_rollout(path)) == everything(record)
        assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_other_tools_read_it(tmp_path: Path, rollout: RolloutRecord) -> None:
    write_rollout(tmp_path / "r.parquet", rollout)
    row = pq.read_table(tmp_path / "r.parquet").to_pylist()[3]
    assert row["prompts"] == rollout.prompts[3].tolist()
    assert row["reward/exact"] == rollout.rewards["exact"][3]


def test_a_file_that_is_no_record_is_refused(tmp_path: Path, rollout: RolloutRecord) -> None:
    path = tmp_path / "r.parquet"
    with pytest.raises(DataError, match="is missing: rollouts of this step weren't saved there"):
        read_rollout(path)
    path.write_bytes(b"PAR1 but not much more")
    with pytest.raises(DataError, match="isn't a Parquet file"):
        read_rollout(path)
    pq.write_table(pa.table({"sample_id": [1]}), path)
    with pytest.raises(DataError, match="can't be read as a record of rollouts"):
        read_rollout(path)
    write_rollout(path, rollout)
    whole = path.read_bytes()
    # Every byte of the file counts, but for those that Parquet itself never reads.
    unnoticed = 0
    for place in range(4, len(whole) - 8, 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            assert everything(read_rollout(path)) == everything(rollout)
            unnoticed += 1
        except DataError:
            continue
    assert unnoticed < len(whole) / 37 / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(["seed"]), "its columns are .*, expected .*seed: int64"),
        (lambda t: t.slice(0, 19), "digest"),
        (lambda t: t.take([1, 0, *range(2, 20)]), "aren't in the order"),
        (
            lambda t: t.set_column(0, "sample_id", [[1.5] * 20]),
            "sample_id: double.*expected .*sample_id: int64",
        ),
        (lambda t: t.set_column(3, "version", [[*range(19), None]]), "are null"),
        (lambda t: t.set_column(3, "version", [list(range(20))]), "contents have digest"),
        (lambda t: t.append_column("reward/more", [[0.0] * 20]), "reward/more: double"),
        (
            lambda t: t.replace_schema_metadata(
                {k: v.replace(b'"format":1', b'"format":9') for k, v in t.schema.metadata.items()}
            ),
            "has format 9 of rollouts, this Raymill reads 1",
        ),
    ],
)
def test_a_file_that_was_changed_is_refused(
    tmp_path: Path, rollout: RolloutRecord, change: Any, message: str
) -> None:
    path = tmp_path / "r.parquet"
    write_rollout(path, rollout)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(DataError, match=message):
        read_rollout(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": np.zeros(20, np.int32)}, "each once"),
        ({"seed": np.zeros(3, np.int64)}, "seed has 3 entries, sample_id 20"),
        ({"rewards": {"exact": np.zeros(2)}}, "reward/exact has 2 entries, sample_id 20"),
        ({"answers": (np.zeros(0, np.int32),) * 20}, "answer 0 to sample 10 has .* and 0 answer tokens"),
        ({"log_probs": (np.zeros(4, np.float32),) * 20}, "has 5 tokens and 4 log-prob"),
        ({"log_probs": (np.full(5, np.nan, np.float32),) * 20}, "aren't finite"),
        ({"log_probs": (np.full(5, 0.1, np.float32),) * 20}, "at most 0"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_refused(
    rollout: RolloutRecord, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(rollout, **change)
