"""A checkpoint is whole or absent; a damaged one is reported, and the one before it is used."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from safetensors.numpy import load_file

from faults.weather import Weather
from raymill import reading
from raymill.checkpoint.chunks import CHUNK_BYTES
from raymill.checkpoint.commit import commit
from raymill.checkpoint.fence import FencedError, advance_fence, raise_fence, writing_folder
from raymill.checkpoint.file_record import DamagedError, FileRecord
from raymill.checkpoint.fragments import (
    ADAMW_MOMENTS,
    FragmentReader,
    write_fragments,
)
from raymill.checkpoint.layout import Layout, ParameterEntry
from raymill.checkpoint.manifest import INDEX_NAME, MANIFEST_NAME, CheckpointManifest, verify
from raymill.checkpoint.resume import contradictions, find_fork, newest_verified, parse_fork
from raymill.checkpoint.retention import (
    RetentionPolicy,
    apply_retention,
    committed_steps,
    remove_leftovers,
    set_aside,
    steps_to_delete,
)
from raymill.checkpoint.safetensors_file import TABLE_NAME, data_start_for, write_safetensors
from raymill.checkpoint.votes import VOTE_BYTES, CommitVote, layout_digest, refusals
from raymill.errors import CheckpointError, ConfigError, StorageError
from raymill.schema.identity import CHANGEABLE_ON_FORK, CHANGEABLE_ON_RESUME

KINDS = ("fp32", *ADAMW_MOMENTS)

T = TypeVar("T")
SHAPES = {"a": (4, 3), "b": (5,)}
LAYOUT = Layout.equal_parts(1, {name: ParameterEntry(shape) for name, shape in SHAPES.items()})
# Of two ranks, the first of which holds everything.
UNEVEN = replace(LAYOUT, world_size=2)


class Alone:
    """A group of one."""

    rank = 0
    world_size = 1

    def gather_to_zero(self, data: bytes) -> list[bytes]:
        return [data]

    def broadcast(self, value: T) -> T:
        return value


class RefusedByRankOne(Alone):
    """A group in which another rank fails to write."""

    world_size = 2

    def gather_to_zero(self, data: bytes) -> list[bytes]:
        return [data, CommitVote(refusal="OSError: no space left on device").encode()]


def manifest(step: int) -> CheckpointManifest:
    return CheckpointManifest(
        step, step * 8, step * 80, 1, 1, {"optim.learning_rate": 0.1}, "c" * 64, ("d" * 64,),
        "t" * 64, None, None, {},
    )  # fmt: skip


def state(seed: int) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        name: {kind: rng.random(int(np.prod(shape)), dtype=np.float32) for kind in KINDS}
        for name, shape in SHAPES.items()
    }


def save(folder: Path, step: int, group: Any = None) -> Path:
    values = state(step)
    fragments = [(name, 0, arrays) for name, arrays in values.items()]
    raise_fence(folder, 0)
    layout = LAYOUT if group is None else UNEVEN
    return commit(folder, manifest(step), layout, fragments, group or Alone())


def test_what_was_committed_is_read_back_bit_by_bit_and_by_ranges(tmp_path: Path) -> None:
    directory = save(tmp_path, 3)
    assert directory.name == "step-00000003"
    assert verify(directory).step == 3
    reader = FragmentReader.open(directory)
    for name, arrays in state(3).items():
        for kind, values in arrays.items():
            assert np.array_equal(reader.read(kind, name), values)
            assert np.array_equal(reader.read(kind, name, 2, 2), values[2:4])
    assert reader.tensor("a").shape == (4, 3)
    with pytest.raises(CheckpointError, match="no parameter nothing"):
        reader.read("fp32", "nothing")
    with pytest.raises(CheckpointError, match="has 5 elements"):
        reader.read("fp32", "b", 3, 9)


def test_reading_holds_a_parameter_at_a_time_and_not_the_checkpoint(tmp_path: Path) -> None:
    """Read 40 MiB in 13 parameters, with at most twice the largest (4 MiB) in memory at any time."""
    largest, numel = 4 * 2**20, 2**20
    shapes = {"large": (numel,), **{f"small.{n}": (numel // 4,) for n in range(12)}}
    fragments = [
        (name, 0, {kind: np.full(shape, 1.0, dtype=np.float32) for kind in KINDS})
        for name, shape in shapes.items()
    ]
    raise_fence(tmp_path, 0)
    layout = Layout.equal_parts(1, {name: ParameterEntry(shape) for name, shape in shapes.items()})
    directory = commit(tmp_path, manifest(1), layout, fragments, Alone())
    written = sum(path.stat().st_size for path in directory.glob("rank-*"))
    assert written > 40 * 2**20
    del fragments
    tracemalloc.start()
    try:
        verify(directory)
        reader = FragmentReader.open(directory)
        hashed = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        for name in shapes:
            for kind in KINDS:
                reader.read(kind, name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.1 * largest
    assert hashed < 3 * 8 * 2**20, "digests are taken of pieces"


@pytest.mark.parametrize("victim", ["rank-00000.safetensors", INDEX_NAME, MANIFEST_NAME])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_named_and_the_one_before_is_used(
    tmp_path: Path, victim: str, damage: str
) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / victim
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "truncate":
        path.write_bytes(bytes(data[:-7]))
    else:
        path.unlink()
    # Those who look for a checkpoint to resume from leave a flipped bit to its reader.
    found = newest_verified(tmp_path)
    assert found is not None
    if damage == "flip" and victim.startswith("rank"):
        assert found.manifest.step == 2
        with pytest.raises(DamagedError, match=victim) as told:
            found.reader().tensor("a")
        found = newest_verified(tmp_path, {told.value.location: str(told.value)})
    for newest in (found, newest_verified(tmp_path, check=verify)):
        assert newest is not None
        assert newest.manifest.step == 1
        [text] = newest.passed_over
        assert "step-00000002" in text


def test_one_that_cannot_be_read_is_read_again_and_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    monkeypatch.setattr(reading, "PAUSE_S", 0.0)
    weather = Weather(monkeypatch)
    newest = tmp_path / "step-00000002" / "rank-00000.safetensors"
    weather.away(newest, times=3)
    found = newest_verified(tmp_path)
    assert found is not None and found.manifest.step == 2
    assert weather.met == 3
    assert found.passed_over == ()
    weather.away(newest, times=100)
    with pytest.raises(
        StorageError, match=r"rank-00000\.safetensors can't be read: Input/output error"
    ):
        newest_verified(tmp_path)


def test_when_none_verifies_the_run_is_not_silently_started_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / MANIFEST_NAME).unlink()
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        newest_verified(tmp_path)
    assert newest_verified(tmp_path / "empty") is None


def left(folder: Path) -> list[str]:
    """List the contents, except the empty folder for writing."""
    assert not list(writing_folder(folder, 0).iterdir())
    return sorted(path.name for path in folder.iterdir() if path != writing_folder(folder, 0))


def test_a_rank_that_cannot_write_leaves_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="rank 1: OSError: no space left"):
        save(tmp_path, 2, RefusedByRankOne())
    assert left(tmp_path) == ["step-00000001"]


def test_an_exception_while_gathering_state_is_a_vote_not_a_hang(tmp_path: Path) -> None:
    def broken() -> Any:
        yield "a", 0, state(1)["a"]
        raise MemoryError("host memory")

    raise_fence(tmp_path, 0)
    with pytest.raises(CheckpointError, match="MemoryError: host memory"):
        commit(tmp_path, manifest(1), LAYOUT, broken(), Alone())
    assert left(tmp_path) == []


def test_who_lost_the_run_commits_nothing_and_spoils_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    raise_fence(tmp_path, 1)
    with pytest.raises(FencedError, match="taken this run over"):
        commit(tmp_path, manifest(2), LAYOUT, [], Alone())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "writing-1"]


def test_a_writer_fenced_off_between_writing_and_renaming_commits_nothing(tmp_path: Path) -> None:
    class TakenOver(Alone):
        """Group in which another process takes the run between a rank's write and the vote."""

        def gather_to_zero(self, data: bytes) -> list[bytes]:
            raise_fence(tmp_path, 1)
            return [data]

    raise_fence(tmp_path, 0)
    fragments = [(name, 0, arrays) for name, arrays in state(2).items()]
    with pytest.raises(FencedError):
        commit(tmp_path, manifest(2), LAYOUT, fragments, TakenOver())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["writing-1"]


def test_storage_that_doesnt_answer_is_no_other_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group hears of a checkpoint that wasn't committed, and may try again."""
    checkpoints = tmp_path / "checkpoints"
    raise_fence(checkpoints, 0)
    fragments = [(name, 0, arrays) for name, arrays in state(1).items()]

    def unreachable(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "is_dir", unreachable)
        broken.setattr(Path, "mkdir", unreachable)
        with pytest.raises(CheckpointError, match="Input/output error") as refusal:
            commit(checkpoints, manifest(1), LAYOUT, fragments, Alone())
        assert not isinstance(refusal.value, FencedError)
    hidden = checkpoints.rename(tmp_path / "unmounted")
    with pytest.raises(CheckpointError) as refusal:
        commit(checkpoints, manifest(1), LAYOUT, fragments, Alone())
    assert not isinstance(refusal.value, FencedError)
    hidden.rename(checkpoints)
    assert commit(checkpoints, manifest(1), LAYOUT, fragments, Alone()).is_dir()


def test_a_late_fence_leaves_a_newer_holders_alone(tmp_path: Path) -> None:
    raise_fence(tmp_path, 7)
    raise_fence(tmp_path, 6)
    assert writing_folder(tmp_path, 7).is_dir()


def test_workers_of_before_commit_nothing_once_others_have_started(tmp_path: Path) -> None:
    save(tmp_path, 1)
    first = advance_fence(tmp_path, 0, 1)
    (first / "half-written").mkdir()
    fragments = [(name, 0, arrays) for name, arrays in state(2).items()]
    of = [replace(manifest(2), start=start) for start in range(4)]
    second = advance_fence(tmp_path, 0, 2)
    assert [path.name for path in second.iterdir()] == ["half-written"]
    with pytest.raises(FencedError, match="newer workers have been started"):
        commit(tmp_path, of[1], LAYOUT, fragments, Alone())
    with pytest.raises(FencedError):
        advance_fence(tmp_path, 0, 1)
    assert advance_fence(tmp_path, 0, 2) == second
    commit(tmp_path, of[2], LAYOUT, fragments, Alone())
    raise_fence(tmp_path, 1)
    with pytest.raises(FencedError):
        advance_fence(tmp_path, 0, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000001", "step-00000002", "writing-1",
    ]  # fmt: skip


def test_of_a_holder_of_before_and_a_new_one_at_once_the_new_one_stays(tmp_path: Path) -> None:
    """While an old holder goes through a hundred starts, a new one takes the run."""
    raise_fence(tmp_path, 1)
    begun = threading.Event()

    def go_on() -> None:
        with suppress(FencedError):
            for start in range(1, 1000):
                advance_fence(tmp_path, 1, start)
                begun.set()

    thread = threading.Thread(target=go_on)
    thread.start()
    begun.wait()
    raise_fence(tmp_path, 2)
    thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["writing-2"]


def test_the_file_is_what_the_library_reads_and_its_table_proves_it(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(CHUNK_BYTES // 4 + 7, dtype=np.float32),
        "b/é": np.zeros(0, dtype=np.float32),
    }
    start = data_start_for(arrays)
    size, sha256 = write_safetensors(tmp_path / "x", arrays, start)
    found = load_file(tmp_path / "x")
    table = found.pop(TABLE_NAME)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], values) for name, values in arrays.items())
    data = (tmp_path / "x").read_bytes()
    assert data[start : start + 4 * arrays["a"].size] == arrays["a"].tobytes()
    content = data[: -table.nbytes]
    chunks = [content[n : n + CHUNK_BYTES] for n in range(0, len(content), CHUNK_BYTES)]
    assert len(chunks) == 2
    assert table.tobytes() == b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
    assert (size, sha256) == (len(data), hashlib.sha256(table.tobytes()).hexdigest())


def test_a_rank_writes_what_the_layout_gives_it_and_nothing_else(tmp_path: Path) -> None:
    values = state(1)
    whole = [(name, 0, arrays) for name, arrays in values.items()]
    weights = [(name, 0, {"fp32": arrays["fp32"]}) for name, arrays in values.items()]
    halves = Layout.equal_parts(2, LAYOUT.entries)
    for layout, rank, fragments in (
        (halves, 0, whole), (halves, 1, whole), (LAYOUT, 0, whole[:1]), (LAYOUT, 0, weights),
        (LAYOUT, 0, [*whole, ("c", 0, values["b"])]), (LAYOUT, 0, [("a", 1, values["a"])]),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="the layout"):
            write_fragments(tmp_path, rank, layout, fragments)
    assert not list(tmp_path.iterdir())


def test_ranks_that_disagree_on_the_layout_commit_nothing(tmp_path: Path) -> None:
    class Another(Alone):
        """Group whose rank 1 wrote by a layout of its own."""

        world_size = 2

        def __init__(self, layout: str, size: int) -> None:
            self.vote = CommitVote(FileRecord(size, "0" * 64), layout)

        def gather_to_zero(self, data: bytes) -> list[bytes]:
            return [data, self.vote.encode()]

    digest, size = layout_digest(UNEVEN), UNEVEN.file_sizes()[1]
    for group in (Another("f" * 64, size), Another(digest, size + 1)):
        with pytest.raises(CheckpointError, match="rank 1: it wrote by another layout"):
            save(tmp_path, 1, group)
    assert left(tmp_path) == []
    save(tmp_path, 1, Another(digest, size))


def test_votes_have_a_fixed_size_and_long_refusals_lose_their_middle() -> None:
    for vote in (
        CommitVote(FileRecord(2**60 + 5, "ab" * 32, CHUNK_BYTES), "cd" * 32),
        CommitVote(refusal="OSError: é"),
    ):
        assert len(vote.encode()) == VOTE_BYTES
        assert CommitVote.decode(vote.encode()) == vote
    long = CommitVote(refusal="OSError: no space: " + "x" * 999 + "/rank-00001")
    assert len(long.encode()) == VOTE_BYTES
    text = CommitVote.decode(long.encode()).refusal
    assert text.startswith("OSError: no space: ") and text.endswith("/rank-00001")
    many = refusals([CommitVote(refusal="full")] * 9, Layout.equal_parts(9, LAYOUT.entries))
    assert many == [*(f"rank {rank}: full" for rank in range(4)), "and 5 more ranks"]


def test_the_index_says_which_moments_a_parameter_has(tmp_path: Path) -> None:
    layout = Layout.equal_parts(1, {"m": ParameterEntry((3,), ("momentum_buffer",))})
    values = {"fp32": np.ones(3, np.float32), "momentum_buffer": np.full(3, 2, np.float32)}
    raise_fence(tmp_path, 0)
    directory = commit(tmp_path, manifest(1), layout, [("m", 0, values)], Alone())
    reader = FragmentReader.open(directory)
    assert reader.read("momentum_buffer", "m").tolist() == [2, 2, 2]
    with pytest.raises(CheckpointError, match="has the moments momentum_buffer, and no exp_avg"):
        reader.read("exp_avg", "m")


def test_a_damaged_checkpoint_makes_room_for_the_same_step(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / INDEX_NAME).unlink()
    with pytest.raises(CheckpointError, match="not committed"):
        save(tmp_path, 2)
    found = newest_verified(tmp_path)
    assert found is not None
    (damaged,) = found.damaged
    set_aside(damaged)
    save(tmp_path, 2)
    assert verify(tmp_path / "step-00000002").step == 2
    assert any(".damaged-" in path.name for path in tmp_path.iterdir())
    assert [step for step, _ in committed_steps(tmp_path)] == [1, 2]


def test_retention() -> None:
    steps = list(range(10, 110, 10))
    assert steps_to_delete(steps, RetentionPolicy(2, 0), []) == steps[:-2]
    assert steps_to_delete(steps, RetentionPolicy(1, 50), []) == [10, 20, 30, 40, 60, 70, 80, 90]
    assert 30 not in steps_to_delete(steps, RetentionPolicy(2, 0), [30])
    assert steps_to_delete(steps, RetentionPolicy(0, 0), []) == steps[:-1], (
        "the newest always stays"
    )
    assert steps_to_delete(steps, RetentionPolicy(1, 0, before=45), []) == [
        10,
        20,
        30,
        50,
        60,
        70,
        80,
        90,
    ]
    assert steps_to_delete(steps, RetentionPolicy(1, 0, before=5), []) == steps[:-1], (
        "there is none before it"
    )


def test_retention_on_disk_spares_protected_and_clears_leftovers(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    writing = writing_folder(tmp_path, 0)
    (writing / "step-00000009-abc").mkdir()
    apply_retention(tmp_path, RetentionPolicy(1, 0), [tmp_path / "step-00000001"])
    remove_leftovers(tmp_path, writing)
    assert left(tmp_path) == ["step-00000001", "step-00000003"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_from_before_a_key_existed_has_the_value_that_it_had(precision: str) -> None:
    stored = {"train.precision": precision}
    same = stored | {"train.reduce_precision": precision}
    assert contradictions(stored, same, CHANGEABLE_ON_RESUME) == []
    other = stored | {"train.reduce_precision": "bf16" if precision == "fp32" else "fp32"}
    (problem,) = contradictions(stored, other, CHANGEABLE_ON_RESUME)
    assert f"was trained with {precision!r}" in problem


def test_contradictions_name_the_key() -> None:
    stored: Mapping[str, Any] = {"optim.learning_rate": 0.1, "train.steps": 5, "arch.layers": 2}
    asked = {"optim.learning_rate": 0.2, "train.steps": 9, "arch.layers": 2, "zero.stage": 3}
    (problem,) = contradictions(stored, asked, CHANGEABLE_ON_RESUME)
    assert problem.startswith("optim.learning_rate=0.2: the checkpoint was trained with 0.1")
    assert contradictions(stored, asked, CHANGEABLE_ON_FORK) == []
    (problem,) = contradictions(
        {"optim.name": "adamw"}, {"optim.name": "muon"}, CHANGEABLE_ON_RESUME
    )
    assert problem.startswith("optim.name='muon': the checkpoint was trained with 'adamw'")


def test_forks(tmp_path: Path) -> None:
    save(tmp_path / "base" / "checkpoints", 4)
    assert find_fork(tmp_path, "base@4").manifest.step == 4
    with pytest.raises(ConfigError, match=r"no step 5 \(available: 4\)"):
        find_fork(tmp_path, "base@5")
    with pytest.raises(ConfigError, match="<run name>@<step>"):
        parse_fork("../base@5")


def test_an_altered_manifest_does_not_verify(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / MANIFEST_NAME
    body = json.loads(path.read_text())
    body["samples"] += 1
    path.write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match="doesn't match its own digest"):
        verify(path.parent)
