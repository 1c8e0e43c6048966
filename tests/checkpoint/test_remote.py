"""A run in an object store: one commit at a time, by one writer, complete or absent."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from at_once import at_once
from checkpoint.test_commit import LAYOUT, Alone, manifest, state
from checkpoint.test_crash_points import injected
from faults.injector import happened
from raymill.checkpoint import store_files
from raymill.checkpoint.commit import commit
from raymill.checkpoint.fence import FencedError, raise_fence
from raymill.checkpoint.file_record import DamagedError
from raymill.checkpoint.ledger import Commit, Ledger, LedgerState
from raymill.checkpoint.manifest import MANIFEST_NAME
from raymill.checkpoint.remote import RemoteRun
from raymill.checkpoint.resume import (
    VerifiedCheckpoint,
    find_fork,
    newest_verified,
    set_damaged_aside,
)
from raymill.checkpoint.retention import RetentionPolicy, committed_steps, remove_leftovers
from raymill.errors import CheckpointError, ConfigError, StorageError
from raymill.storage.bucket import Bucket

# A rank's file, here and there; index, manifest and the folder's entries here; both there, the ledger's entry;
# and after the rename here the entries of its parent.
WRITES = 9
REAL = 8
SCRIPT = """
import sys
from pathlib import Path
from checkpoint.test_remote import save_as
for step in (1, 2):
    save_as(1, sys.argv[2], Path(sys.argv[1]), step)
"""


def save_as(token: int, uri: str, run_dir: Path, step: int) -> None:
    """A commit of one rank, by the holder of a token."""
    fragments = [(name, 0, arrays) for name, arrays in state(step).items()]
    checkpoints = run_dir / "checkpoints"
    raise_fence(checkpoints, token)
    (run_dir / "metrics.jsonl").write_text("".join(f"{n}\n" for n in range(1, step + 1)))
    remote = RemoteRun(uri, token)
    commit(
        checkpoints, replace(manifest(step), token=token), LAYOUT, fragments, Alone(), remote
    )  # fmt: skip


def taken_up(uri: str, token: int, run_dir: Path) -> list[str]:
    """Return the messages to a new holder while it downloads the run."""
    said: list[str] = []
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    remote = RemoteRun(uri, token)
    remote.fence_off()  # as `acquire` does
    remote.download(run_dir, said.append)
    return said


def steps_of(uri: str) -> list[int]:
    return [commit.step for commit in Ledger(Bucket(uri), 99).state().commits]


def newest(uri: str, run_dir: Path) -> VerifiedCheckpoint:
    found = newest_verified(run_dir / "checkpoints", remote=RemoteRun(uri))
    assert found is not None
    return found


def check(uri: str, run_dir: Path, step: int, here: bool) -> None:
    """The newest checkpoint is this step's, with all its values; `here` if it isn't read from the store."""
    found = newest(uri, run_dir)
    assert (found.manifest.step, found.uri is None) == (step, here)
    for shared in (False, True):
        reader = found.reader(shared)
        for name, arrays in state(step).items():
            for kind, values in arrays.items():
                assert np.array_equal(reader.read(kind, name), values)
    assert found.cache.is_dir() is not here


def test_a_run_goes_on_elsewhere(uri: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for step in (1, 2):
        save_as(1, uri, one, step)
    assert steps_of(uri) == [1, 2]
    assert taken_up(uri, 2, two) == []
    check(uri, two, 2, here=False)
    assert committed_steps(two / "checkpoints") == [], "nothing is downloaded ahead"
    assert (two / "metrics.jsonl").read_text() == "1\n2\n"
    save_as(2, uri, two, 3)
    check(uri, two, 3, here=True)
    # And back: what was written elsewhere is read from the store.
    assert taken_up(uri, 3, one) == []
    check(uri, one, 3, here=False)
    assert (one / "metrics.jsonl").read_text() == "1\n2\n3\n"
    assert taken_up(uri, 4, one) == []
    manifests, problems = RemoteRun(uri).verified()
    assert ([found.step for found in manifests], problems) == ([1, 2, 3], [])
    assert manifests[2].token == 2


def test_the_files_of_who_worked_here_last_are_newer_than_the_stores(
    uri: str, tmp_path: Path
) -> None:
    taken_up(uri, 1, tmp_path)
    save_as(1, uri, tmp_path, 1)
    (tmp_path / "metrics.jsonl").write_text("1\nmade after the checkpoint\n")
    taken_up(uri, 2, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "1\nmade after the checkpoint\n"


def test_who_lost_the_run_commits_nothing_and_spoils_nothing(uri: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    save_as(1, uri, one, 1)
    taken_up(uri, 2, two)
    with pytest.raises(FencedError, match=r"token 1\.0 no longer holds it, 2\.0 does"):
        save_as(1, uri, one, 2)
    assert steps_of(uri) == [1]
    assert [step for step, _ in committed_steps(one / "checkpoints")] == [1]
    save_as(2, uri, two, 2)
    RemoteRun(uri, 1).upload_files(one)
    taken_up(uri, 3, tmp_path / "three")
    assert (tmp_path / "three" / "metrics.jsonl").read_text() == "1\n2\n"
    with pytest.raises(FencedError):
        RemoteRun(uri, 2).apply_retention(RetentionPolicy(1, 0), ())


def test_workers_of_before_commit_nothing_once_others_have_started(
    uri: str, tmp_path: Path
) -> None:
    save_as(1, uri, tmp_path, 1)
    RemoteRun(uri, 1, 1).fence_off()
    with pytest.raises(FencedError, match=r"token 1\.0 no longer holds it, 1\.1 does"):
        save_as(1, uri, tmp_path, 2)
    assert steps_of(uri) == [1]
    RemoteRun(uri, 2).fence_off()
    with pytest.raises(FencedError):
        RemoteRun(uri, 1, 7).fence_off()


def test_of_writers_at_once_each_change_counts_or_is_refused(uri: str) -> None:
    """Eight add to one ledger while a ninth takes it over."""
    added: list[int] = []

    def add(step: int) -> None:
        try:
            Ledger(Bucket(uri), 1).add(Commit(step, f"step-{step}", "d"))
            added.append(step)
        except FencedError:
            pass

    at_once(*(partial(add, step) for step in range(8)), Ledger(Bucket(uri), 2).fence_off)
    bucket = Bucket(uri)
    entries = [json.loads(bucket.get(key) or b"") for key in sorted(bucket.sizes("ledger"))]
    assert [entry["token"] for entry in entries] == [*[1] * len(added), 2]
    # Each is made from the one before: a step goes below those that it was made after, or on top of them.
    steps: list[int] = []
    for entry in entries[:-1]:
        found = [commit["step"] for commit in entry["commits"]]
        assert found == [*(step for step in steps if step < found[-1]), found[-1]]
        steps = found
        added.remove(found[-1])
    assert added == []


def test_a_lost_answer_is_not_taken_for_anothers_entry(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(uri)
    put_new = bucket.put_new
    monkeypatch.setattr(bucket, "put_new", lambda key, data: put_new(key, data) and False)
    Ledger(bucket, 1).add(Commit(5, "step-5", "d"))
    assert steps_of(uri) == [5]
    assert len(bucket.sizes("ledger")) == 1


@pytest.mark.parametrize("write", range(1, WRITES + 1))
def test_killed_at_each_write(uri: str, tmp_path: Path, write: int) -> None:
    run_dir = tmp_path / "run"
    fault = {"what": "kill", "write": WRITES + write}
    done = injected(SCRIPT, tmp_path, fault, str(run_dir), uri)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert happened(tmp_path) == 1
    step = 2 if write >= REAL else 1
    assert steps_of(uri) == list(range(1, step + 1))
    for number, folder in enumerate((run_dir, tmp_path / "elsewhere")):
        taken_up(uri, 2 + number, folder)
        check(
            uri,
            folder,
            step,
            here=folder == run_dir and (run_dir / "checkpoints" / f"step-{step:08d}").is_dir(),
        )
    folders = {key.split("/")[1] for key in Bucket(uri).sizes("checkpoints")}
    assert len(folders) == step, "what was uploaded and never real is gone"
    save_as(3, uri, tmp_path / "elsewhere", 3)


def test_a_store_that_takes_nothing_costs_the_checkpoint_alone(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_as(1, uri, tmp_path, 1)
    upload = Bucket.upload

    def refuse(self: Bucket, path: Path, key: str) -> None:
        if key.endswith(MANIFEST_NAME):
            raise StorageError("the store can't be reached")
        upload(self, path, key)

    words = r"step 2 was not committed \(rank 0: StorageError: the store can't be reached"
    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "upload", refuse)
        with pytest.raises(CheckpointError, match=words):
            save_as(1, uri, tmp_path, 2)
    assert steps_of(uri) == [1]
    assert len({key.split("/")[1] for key in Bucket(uri).sizes("checkpoints")}) == 1
    check(uri, tmp_path, 1, here=True)
    save_as(1, uri, tmp_path, 2)
    check(uri, tmp_path, 2, here=True)


@pytest.mark.parametrize("how", ["flipped", "cut", "missing", "manifest"])
def test_a_damaged_one_is_named_and_the_one_before_is_fetched(
    uri: str, tmp_path: Path, how: str
) -> None:
    for step in (1, 2):
        save_as(1, uri, tmp_path / "one", step)
    bucket = Bucket(uri)
    folder = Ledger(bucket, 1).state().commits[-1].folder
    key = f"checkpoints/{folder}/rank-00000.safetensors"
    data = bucket.get(key)
    assert data is not None
    if how == "flipped":
        bucket.put(key, bytes([*data[:-1], data[-1] ^ 1]))
    elif how == "cut":
        bucket.put(key, data[:-1])
    else:
        bucket.delete([key if how == "missing" else f"checkpoints/{folder}/{MANIFEST_NAME}"])
    [problem] = RemoteRun(uri).verified()[1]
    assert folder in problem
    taken_up(uri, 2, tmp_path / "two")
    found = newest(uri, tmp_path / "two")
    if how == "flipped":
        assert found.manifest.step == 2
        with pytest.raises(DamagedError, match=folder) as told:
            found.reader(shared=True).tensor("b", "exp_avg_sq")
        assert set_damaged_aside(found, told.value, RemoteRun(uri, 2)) == found.uri
        # That holds on every machine, and the audit names it as well.
        found = newest(uri, tmp_path / "three")
        assert RemoteRun(uri).verified()[1] == [str(told.value)]
    assert found.manifest.step == 1
    [passed_over] = found.passed_over
    assert folder in passed_over
    # Here it is whole still, and so nothing is lost where it was made.
    assert taken_up(uri, 3, tmp_path / "one") == []
    check(uri, tmp_path / "one", 2, here=True)


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_instead_of_a_damaged_copy_here_the_store_is_read(
    uri: str, tmp_path: Path, how: str
) -> None:
    save_as(1, uri, tmp_path, 1)
    path = tmp_path / "checkpoints" / "step-00000001" / "rank-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data[:-1] if how == "cut" else data)
    assert taken_up(uri, 2, tmp_path) == []
    if how == "flipped":
        found = newest(uri, tmp_path)
        with pytest.raises(DamagedError) as told:
            found.reader().tensor("a")
        assert ".damaged-" in set_damaged_aside(found, told.value, RemoteRun(uri, 2))
    check(uri, tmp_path, 1, here=False)


def test_the_ranks_of_a_node_read_each_block_once(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_as(1, uri, tmp_path / "one", 1)
    found = newest(uri, tmp_path / "two")
    asked: list[tuple[str, int]] = []
    read_range = Bucket.read_range

    def counted(self: Bucket, key: str, offset: int, buffer: memoryview) -> int:
        asked.append((key, offset))
        return read_range(self, key, offset, buffer)

    monkeypatch.setattr(Bucket, "read_range", counted)
    monkeypatch.setattr(store_files, "READ_BYTES", 1024)

    def read() -> None:
        tensors = found.reader(shared=True).tensors(state(1))
        assert all(
            np.array_equal(tensors[name].ravel(), arrays["fp32"])
            for name, arrays in state(1).items()
        )

    at_once(read, read, read)
    assert len(asked) == len(set(asked)) > 2
    remove_leftovers(tmp_path / "two" / "checkpoints", tmp_path / "none")
    assert not found.cache.exists()


def test_what_the_store_does_not_know_is_set_aside_and_not_deleted(
    uri: str, tmp_path: Path
) -> None:
    save_as(1, uri, tmp_path, 1)
    shutil.copytree(
        tmp_path / "checkpoints" / "step-00000001", tmp_path / "checkpoints" / "step-00000007"
    )
    [said] = taken_up(uri, 2, tmp_path)
    assert f"step-00000007 isn't in {uri}: set aside as step-00000007.damaged-" in said
    check(uri, tmp_path, 1, here=True)


def test_what_the_store_let_go_is_let_go_here(uri: str, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_as(1, uri, tmp_path, step)
    RemoteRun(uri, 1).apply_retention(RetentionPolicy(1, 0), ())
    assert taken_up(uri, 2, tmp_path) == []
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000003", "writing-1",
    ]  # fmt: skip


def test_retention_does_not_count_what_could_not_be_gone_on_from(uri: str, tmp_path: Path) -> None:
    """Steps 4 and 6 are damaged; the run continues from step 2 and commits step 3."""
    for step in (2, 4, 6):
        save_as(1, uri, tmp_path / "one", step)
    bucket = Bucket(uri)
    for commit_ in Ledger(bucket, 1).state().commits[1:]:
        bucket.delete([f"checkpoints/{commit_.folder}/rank-00000.safetensors"])
    two = tmp_path / "two"
    taken_up(uri, 2, two)
    save_as(2, uri, two, 3)
    RemoteRun(uri, 2).apply_retention(RetentionPolicy(2, 0), ())
    assert steps_of(uri) == [2, 3]
    assert RemoteRun(uri).verified()[1] == []


def test_after_a_lost_answer_the_ledger_names_nothing_that_is_deleted(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_as(1, uri, tmp_path, 1)
    put_new = Bucket.put_new

    def lost(self: Bucket, key: str, data: bytes) -> bool:
        put_new(self, key, data)
        monkeypatch.setattr(Bucket, "put_new", put_new)
        raise StorageError("no answer")

    monkeypatch.setattr(Bucket, "put_new", lost)
    with pytest.raises(CheckpointError, match="no answer"):
        save_as(1, uri, tmp_path, 2)
    assert steps_of(uri) == [1]
    assert RemoteRun(uri).verified()[1] == []


def test_a_step_that_was_committed_there_and_not_here_is_gone_on_from(
    uri: str, tmp_path: Path
) -> None:
    """Killed in between, its driver starts other workers."""
    for step in (1, 2):
        save_as(1, uri, tmp_path, step)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000002")
    remote = RemoteRun(uri, 1, 1)
    remote.fence_off()
    remote.tidy(tmp_path, lambda _: None)
    check(uri, tmp_path, 2, here=False)


def test_the_marker_of_results_is_there_once_all_else_is(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_as(1, uri, tmp_path, 1)
    export = tmp_path / "export"
    export.mkdir()
    for text in ("old", "new"):
        for name in ("weights", "marker.json"):
            (export / name).write_text(f"{text} {name}")
        if text == "old":
            RemoteRun(uri, 1).upload_results(tmp_path, "marker.json")
    upload = Bucket.upload

    def cut_off(self: Bucket, path: Path, key: str) -> None:
        if path.name == "weights":
            raise StorageError("cut off")
        upload(self, path, key)

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "upload", cut_off)
        with pytest.raises(StorageError):
            RemoteRun(uri, 1).upload_results(tmp_path, "marker.json")
    bucket = Bucket(f"{uri}/export")
    assert (bucket.get("weights"), bucket.get("marker.json")) == (b"old weights", None)
    RemoteRun(uri, 1).upload_results(tmp_path, "marker.json")
    assert bucket.get("marker.json") == b"new marker.json"
    RemoteRun(uri, 1, 3).fence_off()
    RemoteRun(uri, 1).upload_results(
        tmp_path, "marker.json"
    )  # its own workers don't fence a driver off
    RemoteRun(uri, 2).fence_off()
    with pytest.raises(FencedError):
        RemoteRun(uri, 1).upload_results(tmp_path, "marker.json")


def test_another_stores_folder_is_not_taken_for_this_ones(uri: str, tmp_path: Path) -> None:
    taken_up(f"{uri}/a", 1, tmp_path)
    save_as(1, f"{uri}/a", tmp_path, 1)
    save_as(1, f"{uri}/b", tmp_path / "other", 5)
    taken_up(f"{uri}/b", 2, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "1\n2\n3\n4\n5\n"
    check(f"{uri}/b", tmp_path, 5, here=False)


def test_who_is_late_deletes_nothing_of_a_newer_holders(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes the run, and commits, between this one's reading of the ledger and its cleanup."""
    save_as(1, uri, tmp_path / "one", 1)
    state_of = Ledger.state

    def and_then_another_commits(self: Ledger) -> LedgerState:
        found = state_of(self)
        monkeypatch.setattr(Ledger, "state", state_of)
        RemoteRun(uri, 3).fence_off()
        save_as(3, uri, tmp_path / "three", 2)
        return found

    monkeypatch.setattr(Ledger, "state", and_then_another_commits)
    taken_up(uri, 2, tmp_path / "two")
    assert RemoteRun(uri).verified()[1] == []
    assert steps_of(uri) == [1, 2]


def test_a_fork_reads_one_checkpoint_of_another_run(uri: str, tmp_path: Path) -> None:
    for step in (1, 2):
        save_as(1, f"{uri}/base", tmp_path / "here", step)
    base = RemoteRun(f"{uri}/base")
    found = find_fork(tmp_path / "there", "base@1", base)
    assert found.manifest.step == 1
    assert np.array_equal(found.reader().read("fp32", "b"), state(1)["b"]["fp32"])
    with pytest.raises(ConfigError, match=r"run.from=base@5: .* has no step 5 \(available: 1, 2\)"):
        find_fork(tmp_path / "there", "base@5", base)


def test_retention_spares_what_it_has_to(uri: str, tmp_path: Path) -> None:
    for step in range(1, 7):
        save_as(1, uri, tmp_path, step)
    RemoteRun(uri, 1).apply_retention(RetentionPolicy(2, 4), [Path("step-00000001")])
    assert steps_of(uri) == [1, 4, 5, 6]
    assert len({key.split("/")[1] for key in Bucket(uri).sizes("checkpoints")}) == 4
    assert RemoteRun(uri).verified()[1] == []


def test_a_run_to_look_at_is_found_or_named(uri: str, tmp_path: Path) -> None:
    save_as(1, f"{uri}/one", tmp_path / "run", 1)
    RemoteRun(f"{uri}/one").download_files(tmp_path / "there")
    assert (tmp_path / "there" / "metrics.jsonl").read_text() == "1\n"
    with pytest.raises(ConfigError, match=r"run.name=two: .* has no such run; existing runs: one"):
        RemoteRun(f"{uri}/two").download_files(tmp_path / "nothing")


def test_a_ledger_that_cannot_be_read_says_what_to_do(uri: str, tmp_path: Path) -> None:
    save_as(1, uri, tmp_path, 1)
    bucket = Bucket(uri)
    last = max(bucket.sizes("ledger"))
    bucket.put(last, b"{")
    with pytest.raises(
        CheckpointError, match=r"can't be read .*delete the damaged entry to continue"
    ):
        Ledger(bucket, 2).fence_off()
