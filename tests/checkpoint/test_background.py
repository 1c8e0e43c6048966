"""Commits in the background: one at a time, retried, and their outcome reported."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.test_commit import LAYOUT, Alone, manifest, state
from raymill.checkpoint import background
from raymill.checkpoint.background import BackgroundCommits
from raymill.checkpoint.fence import FencedError, raise_fence
from raymill.checkpoint.fragments import FragmentReader
from raymill.checkpoint.manifest import verify
from raymill.checkpoint.votes import CommitVote
from raymill.errors import CheckpointError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PAUSE_S", 0.001)


def fragments(seed: int) -> Any:
    return [(name, 0, arrays) for name, arrays in state(seed).items()]


def test_training_goes_on_while_it_is_written(tmp_path: Path) -> None:
    written = threading.Event()

    def slowly() -> Any:
        assert written.wait(30)
        yield from fragments(2)

    raise_fence(tmp_path, 0)
    told: list[Path] = []
    commits = BackgroundCommits(tmp_path, Alone(), told.append)
    commits.start(manifest(2), LAYOUT, slowly())
    assert commits.take_outcome(wait=False) is None
    with pytest.raises(AssertionError, match="take the outcome"):
        commits.start(manifest(3), LAYOUT, fragments(3))
    written.set()
    outcome = commits.take_outcome(wait=True)
    assert outcome is not None
    assert outcome.directory is not None
    assert told == [outcome.directory]
    assert outcome.size == sum(a.nbytes for _, _, kinds in fragments(2) for a in kinds.values())
    assert verify(outcome.directory).step == 2
    reader = FragmentReader.open(outcome.directory)
    assert np.array_equal(reader.read("exp_avg", "b"), state(2)["b"]["exp_avg"])
    assert commits.take_outcome(wait=True) is None


class Failing(Alone):
    """A group in which a rank can't write, so many times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def gather_to_zero(self, data: bytes) -> list[bytes]:
        self.times -= 1
        return [CommitVote(refusal="OSError: away").encode() if self.times >= 0 else data]


def test_what_fails_for_a_moment_is_tried_again(tmp_path: Path) -> None:
    raise_fence(tmp_path, 0)
    commits = BackgroundCommits(tmp_path, Failing(background.TRIES - 1), lambda path: None)
    commits.start(manifest(1), LAYOUT, fragments(1))
    outcome = commits.take_outcome(wait=True)
    assert outcome is not None
    assert outcome.error is None
    assert verify(tmp_path / "step-00000001").step == 1


def test_what_keeps_failing_is_told_and_the_next_one_may_succeed(tmp_path: Path) -> None:
    raise_fence(tmp_path, 0)
    commits = BackgroundCommits(tmp_path, Failing(background.TRIES), lambda path: None)
    commits.start(manifest(1), LAYOUT, fragments(1))
    outcome = commits.take_outcome(wait=True)
    assert outcome is not None
    assert isinstance(outcome.error, CheckpointError)
    assert "rank 0: OSError: away" in str(outcome.error)
    commits.start(manifest(2), LAYOUT, fragments(2))
    outcome = commits.take_outcome(wait=True)
    assert outcome is not None
    assert outcome.directory == tmp_path / "step-00000002"


def test_a_run_that_is_anothers_is_not_tried_again(tmp_path: Path) -> None:
    raise_fence(tmp_path, 1)
    commits = BackgroundCommits(tmp_path, Alone(), lambda path: None)
    commits.start(manifest(1), LAYOUT, fragments(1))
    outcome = commits.take_outcome(wait=True)
    assert outcome is not None
    assert isinstance(outcome.error, FencedError)


def test_a_lost_rank_is_no_failed_checkpoint(tmp_path: Path) -> None:
    class Gone(Alone):
        def gather_to_zero(self, data: bytes) -> list[bytes]:
            raise RuntimeError("connection closed by peer")

    raise_fence(tmp_path, 0)
    commits = BackgroundCommits(tmp_path, Gone(), lambda path: None)
    commits.start(manifest(1), LAYOUT, fragments(1))
    with pytest.raises(RuntimeError, match="closed by peer"):
        commits.take_outcome(wait=True)


def test_it_leaves_the_cores_alone_until_somebody_waits(tmp_path: Path) -> None:
    raise_fence(tmp_path, 0)
    commits = BackgroundCommits(tmp_path, Alone(), lambda path: None, share=1e-9)
    commits.start(manifest(1), LAYOUT, fragments(1))
    commits._thread.join(0.5)  # type: ignore[union-attr]
    assert commits.busy, "its rest after the first piece alone takes hours"
    outcome = commits.take_outcome(wait=True)
    assert outcome is not None
    assert verify(tmp_path / "step-00000001").step == 1
    # By now it knows how long the one before took, and how much time there is.
    commits.start(manifest(2), LAYOUT, fragments(2))
    commits._thread.join(30)  # type: ignore[union-attr]
    assert not commits.busy
    assert verify(tmp_path / "step-00000002").step == 2
