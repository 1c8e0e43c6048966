"""One writer a run: a living holder is respected, a dead one isn't waited for, and a clock decides nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raymill.checkpoint import lease
from raymill.checkpoint.fence import FencedError, check_fence
from raymill.checkpoint.lease import (
    Holder,
    Lease,
    LeaseLostError,
    RunHeldError,
    acquire,
    this_process,
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


def silent(text: str) -> None:
    raise AssertionError(f"nothing was to be said: {text}")


def left_by(run_dir: Path, holder: Holder, token: int = 1) -> Path:
    """A lease as another process would have left it."""
    path = run_dir / "lease" / f"{token:08d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(holder)))
    return path


def elsewhere() -> Holder:
    return replace(this_process(), machine="another", host="far-away", pid=7)


def test_who_holds_it_is_named_and_the_next_one_gets_it_after_release(run_dir: Path) -> None:
    first = acquire(run_dir, silent)
    with pytest.raises(RunHeldError, match=r"run one is held by process \d+ of .* since 20"):
        acquire(run_dir, silent)
    check_fence(run_dir / "checkpoints", first.token)
    first.release()
    second = acquire(run_dir, silent)
    assert second.token == first.token + 1
    with pytest.raises(FencedError):
        check_fence(run_dir / "checkpoints", first.token)
    assert [path.name for path in (run_dir / "lease").iterdir()] == ["00000002.json"]
    second.release()


def test_a_process_that_died_here_is_not_waited_for(run_dir: Path) -> None:
    left_by(run_dir, ended_process())
    lease_held = acquire(run_dir, silent)
    assert lease_held.token == 2
    lease_held.release()


def ended_process() -> Holder:
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = lease._started(process.pid)
    process.wait()
    return replace(this_process(), pid=process.pid, started=started or 0.0)


def test_another_process_of_the_same_number_is_not_the_holder(run_dir: Path) -> None:
    left_by(run_dir, replace(this_process(), started=1.0))
    acquire(run_dir, silent).release()


@pytest.mark.parametrize("moved", [86_400, -86_400])
def test_a_clock_put_right_by_a_day_changes_nothing(
    run_dir: Path, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    import psutil

    held = acquire(run_dir, silent)
    now, boot = time.time, psutil.boot_time
    monkeypatch.setattr(time, "time", lambda: now() + moved)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot() + moved)
    with pytest.raises(RunHeldError):
        acquire(run_dir, silent)
    held.release()


def test_a_holder_elsewhere_is_watched_and_dead_when_it_gives_no_sign(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 0.3)
    monkeypatch.setattr(lease, "_POLL_S", 0.05)
    left_by(run_dir, elsewhere())
    said: list[str] = []
    held = acquire(run_dir, said.append)
    assert held.token == 2
    assert len(said) == 1
    assert "far-away" in said[0]
    held.release()


def test_a_holder_elsewhere_that_gives_a_sign_keeps_it(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 30)
    monkeypatch.setattr(lease, "_POLL_S", 0.02)
    path = left_by(run_dir, elsewhere())
    heard = threading.Event()

    def beat() -> None:
        heard.wait(30)
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(replace(elsewhere(), beats=1))))
        draft.replace(path)

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(RunHeldError, match="far-away"):
        acquire(run_dir, lambda text: heard.set())
    thread.join()


def test_of_many_at_once_one_gets_it(run_dir: Path) -> None:
    left_by(run_dir, ended_process())
    barrier = threading.Barrier(8)
    got: list[Lease] = []
    refused: list[str] = []

    def want() -> None:
        barrier.wait()
        try:
            got.append(acquire(run_dir, silent))
        except RunHeldError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].release()


def test_who_was_taken_for_dead_learns_of_it(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    held = acquire(run_dir, silent)
    left_by(run_dir, elsewhere(), token=2)
    held._thread.join(10)
    with pytest.raises(LeaseLostError, match=r"taken over by process 7 .* far-away"):
        held.check()
    held.release()
    assert json.loads((run_dir / "lease" / "00000002.json").read_text())["released"] is False
