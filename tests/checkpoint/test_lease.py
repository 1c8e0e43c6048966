"""One writer per run: a living holder is respected, a dead one is replaced at once, and no clocks
are compared."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from at_once import at_once
from raymill.checkpoint import lease
from raymill.checkpoint.fence import FencedError, check_fence
from raymill.checkpoint.fencing_tokens import BucketTokens, FencingTokens, FolderTokens, Holder
from raymill.checkpoint.lease import (
    Lease,
    LeaseLostError,
    RunHeldError,
    acquire,
    this_process,
)
from raymill.storage.bucket import Bucket


@dataclass(frozen=True)
class Place:
    """Location of a run: on the disk, or in an object store."""

    run_dir: Path
    uri: str | None

    @property
    def tokens(self) -> FencingTokens:
        if self.uri is None:
            return FolderTokens(self.run_dir / "lease")
        return BucketTokens(Bucket(self.uri))

    def acquire(self, say: Callable[[str], None]) -> Lease:
        return acquire(self.run_dir, say, self.uri)

    def given(self) -> list[int]:
        """Tokens that lie there."""
        if self.uri is not None:
            return [int(Path(key).stem) for key in Bucket(self.uri).sizes("lease")]
        return [int(path.stem) for path in (self.run_dir / "lease").iterdir()]

    def left_by(self, holder: Holder, token: int = 1) -> None:
        """A lease as another process would have left it."""
        self.tokens.write(token, holder)


@pytest.fixture(params=["disk", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    uri = None if request.param == "disk" else request.getfixturevalue("uri")
    return Place(tmp_path / "runs" / "one", uri)


def silent(text: str) -> None:
    raise AssertionError(f"nothing was to be said: {text}")


def elsewhere() -> Holder:
    return replace(
        this_process(), machine="another", host="far-away", pid=7, since="then", nonce=""
    )


def test_who_holds_it_is_named_and_the_next_one_gets_it_after_release(place: Place) -> None:
    first = place.acquire(silent)
    with pytest.raises(RunHeldError, match=r"run one is held by process \d+ of .* since 20"):
        place.acquire(silent)
    check_fence(place.run_dir / "checkpoints", first.token)
    first.release()
    second = place.acquire(silent)
    assert second.token == first.token + 1
    with pytest.raises(FencedError):
        check_fence(place.run_dir / "checkpoints", first.token)
    assert place.given() == [second.token]
    second.release()


def test_a_process_that_died_here_is_not_waited_for(place: Place) -> None:
    place.left_by(ended_process())
    lease_held = place.acquire(silent)
    assert lease_held.token == 2
    lease_held.release()


def ended_process() -> Holder:
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = lease._started(process.pid)
    process.wait()
    return replace(this_process(), pid=process.pid, started=started or 0.0)


def test_another_process_of_the_same_number_is_not_the_holder(place: Place) -> None:
    place.left_by(replace(this_process(), started=1.0))
    place.acquire(silent).release()


@pytest.mark.parametrize("moved", [86_400, -86_400])
def test_a_clock_put_right_by_a_day_changes_nothing(
    place: Place, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    import psutil

    held = place.acquire(silent)
    now, boot = time.time, psutil.boot_time
    monkeypatch.setattr(time, "time", lambda: now() + moved)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot() + moved)
    with pytest.raises(RunHeldError):
        place.acquire(silent)
    held.release()


def left_elsewhere(
    place: Place, monkeypatch: pytest.MonkeyPatch, collective_timeout_s: float
) -> None:
    """A lease held on another machine, which is watched for so long."""
    monkeypatch.setattr(lease, "HOLDER_TIMEOUT_S", collective_timeout_s)
    monkeypatch.setattr(lease, "_POLL_S", 0.02)
    place.left_by(elsewhere())


def test_a_holder_elsewhere_is_watched_and_dead_when_it_gives_no_sign(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_elsewhere(place, monkeypatch, collective_timeout_s=0.3)
    said: list[str] = []
    held = place.acquire(said.append)
    assert held.token == 2
    assert len(said) == 1
    assert "far-away" in said[0]
    held.release()


def test_a_holder_elsewhere_that_gives_a_sign_keeps_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_elsewhere(place, monkeypatch, collective_timeout_s=30)
    heard = threading.Event()

    def beat() -> None:
        heard.wait(30)
        place.left_by(replace(elsewhere(), beats=1))

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(RunHeldError, match="far-away"):
        place.acquire(lambda text: heard.set())
    thread.join()


def test_who_was_faster_is_named_and_not_the_dead(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_elsewhere(place, monkeypatch, collective_timeout_s=5)
    faster = replace(this_process(), host="quick")

    def say(_: str) -> None:
        place.left_by(faster, token=2)

    with pytest.raises(RunHeldError, match="on quick"):
        place.acquire(say)


def test_of_many_at_once_one_gets_it(place: Place) -> None:
    place.left_by(ended_process())
    got: list[Lease] = []
    refused: list[str] = []

    def want() -> None:
        try:
            got.append(place.acquire(silent))
        except RunHeldError as error:
            refused.append(str(error))

    at_once(*[want] * 8)
    assert (len(got), len(refused)) == (1, 7)
    got[0].release()


def test_who_was_taken_for_dead_learns_of_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    held = place.acquire(silent)
    place.left_by(elsewhere(), token=2)
    held._thread.join(10)
    with pytest.raises(LeaseLostError, match=r"taken over by process 7 .* far-away"):
        held.check()
    held.release()
    assert place.tokens.newest() == (2, elsewhere())
