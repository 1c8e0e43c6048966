"""Decisions after failures, case by case, and the causes that are read from Ray's errors."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
from ray.exceptions import ActorDiedError, RayTaskError, UserCodeException
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from raymill.config.entry import EXIT_PREEMPTED
from raymill.driver.failure import (
    Cause,
    Failure,
    GiveUp,
    Retry,
    decide_retry,
    diagnose,
    final_error,
)
from raymill.driver.interrupt import end_preempted, on_termination
from raymill.engine.failure_note import FailureNote
from raymill.errors import ConfigError, DataError, GroupError, StorageError


def lost(step: int, committed: int) -> Failure:
    return Failure(Cause.LOST, "rank 1: ActorDiedError: gone", step, committed)


def raised(step: int, committed: int, what: str = "ValueError: at 0x7f31, pid 88") -> Failure:
    return Failure(Cause.RAISED, what, step, committed)


def test_a_run_that_gets_on_is_tried_again_for_ever() -> None:
    failures = [lost(10 * n + 5, 10 * n) for n in range(1, 420)]
    assert decide_retry(failures, allowed=3) == Retry(1.0)


def test_without_progress_the_pauses_grow_and_end() -> None:
    failures = [lost(15, 10)]
    assert decide_retry(failures, 3) == Retry(1.0)
    assert decide_retry(failures * 2, 3) == Retry(2.0)
    assert decide_retry(failures * 3, 3) == Retry(4.0)
    decision = decide_retry(failures * 4, 3)
    assert isinstance(decision, GiveUp)
    assert "4 failures without a new checkpoint" in decision.why
    assert decide_retry(failures * 9, 99) == Retry(60.0)
    assert isinstance(decide_retry(failures, 0), GiveUp)


def test_the_same_error_at_the_same_step_twice_stops() -> None:
    again = raised(15, 10, "ValueError: at 0x8a00, pid 91")
    decision = decide_retry([raised(15, 10), again], 3)
    assert isinstance(decision, GiveUp)
    assert "the same error at step 16 as before" in decision.why
    assert decide_retry([raised(15, 10), lost(17, 10), again], 9) == decision
    assert decide_retry([raised(15, 10), raised(16, 10)], 3) == Retry(2.0)
    assert decide_retry([raised(15, 10), raised(15, 10, "KeyError: x")], 3) == Retry(2.0)
    assert decide_retry([lost(15, 10), lost(15, 10)], 3) == Retry(2.0), "machines do fail alike"


def test_memory_is_not_tried_again() -> None:
    assert isinstance(decide_retry([Failure(Cause.MEMORY, "x", 1, 0)], 3), GiveUp)


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({0: ValueError("no\nmore")}, (Cause.RAISED, "rank 0: ValueError: no")),
        (
            {0: RuntimeError("[gloo] Connection closed by peer"), 1: KeyError("x")},
            (Cause.RAISED, "rank 1: KeyError: 'x'"),
        ),
        (
            {1: RuntimeError("Connection closed by peer [127.0.0.1]:1")},
            (Cause.LOST, "rank 1: RuntimeError: Connection closed by peer [127.0.0.1]:1"),
        ),
        (
            {1: MemoryError("CUDA out of memory. Tried to allocate 3 GiB")},
            (Cause.MEMORY, "rank 1: MemoryError: CUDA out of memory. Tried to allocate 3 GiB"),
        ),
    ],
)  # fmt: skip
def test_what_workers_raised(failures: dict[int, Exception], expected: tuple[Cause, str]) -> None:
    assert diagnose(WorkerGroupError("text", failures)) == expected


def test_a_failed_rank_is_described_with_its_host() -> None:
    failed = WorkerGroupError("text", {1: KeyError("x y")})
    assert diagnose(failed, {}, {0: "a", 1: "b"})[1] == "rank 1 on b: KeyError: 'x y'"
    note = replace(FailureNote.from_error(KeyError("x y")), host="c")
    assert diagnose(failed, {1: note}, {})[1] == "rank 1 on c: KeyError: 'x y'"


def test_a_lost_worker_is_named_before_the_ranks_that_noticed() -> None:
    gone = WorkerHealthCheckFailedError("check", ActorDiedError())
    echo = RuntimeError("gloo: Connection closed by peer")
    cause, what = diagnose(WorkerGroupError("text", {0: echo, 1: gone}))
    assert cause is Cause.LOST
    assert what.startswith("rank 1: ActorDiedError: ")
    cause, _ = diagnose(ControllerError(ActorDiedError()))
    assert cause is Cause.LOST


def left(error: Exception, waited: bool = False) -> FailureNote:
    """A rank's note."""
    return replace(FailureNote.from_error(error), waited=waited)


def test_a_note_says_more_than_that_a_process_has_gone() -> None:
    gone = WorkerHealthCheckFailedError("check", ActorDiedError())
    error = WorkerGroupError("text", {0: gone, 1: gone})
    echo, mill = left(RuntimeError("a timeout"), waited=True), left(ValueError("no such mill"))
    assert diagnose(error, {0: echo, 1: mill}) == (Cause.RAISED, "rank 1: ValueError: no such mill")
    assert diagnose(None, {1: mill}) == (Cause.RAISED, "rank 1: ValueError: no such mill")
    cause, what = diagnose(error, {0: echo})
    assert (cause, what[:24]) == (Cause.LOST, "rank 1: ActorDiedError: ")
    assert diagnose(None, {1: echo}) == (Cause.LOST, "rank 1: RuntimeError: a timeout")
    full = left(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), waited=True)
    assert diagnose(error, {0: echo, 1: full})[0] is Cause.LOST
    assert diagnose(error, {0: full})[0] is Cause.LOST
    assert diagnose(None, {}) == (Cause.LOST, "the workers ended without a word")


def test_what_another_try_would_meet_again_is_the_runs_error() -> None:
    gone = WorkerGroupError("text", {0: ActorDiedError()})
    data = final_error(gone, {1: left(DataError("shard 3 is missing\nprepare it again"))})
    assert str(data) == "shard 3 is missing\nprepare it again"
    refused = final_error(gone, {1: left(ConfigError(["no key", "no value"]))})
    assert isinstance(refused, ConfigError) and refused.problems == ("no key", "no value")
    away = {1: left(StorageError("the store of gloo is away"))}
    assert final_error(gone, away) is None
    assert diagnose(gone, away)[0] is Cause.LOST
    assert final_error(gone, {1: left(ValueError("no such mill"))}) is None
    assert final_error(None, {}) is None


def test_what_ray_passes_on_is_the_cause_of_who_raised_it() -> None:
    def passed_on(error: Exception) -> Exception:
        place = 'Traceback (most recent call last):\n  File "a.py", line 7, in f\n'
        text = f"{place}{type(error).__name__}: {error}"
        raised: Exception = RayTaskError(
            "f", text, error, "ray::f", 8, "10.0.0.2"
        ).as_instanceof_cause()
        return raised

    formed = ControllerError(passed_on(RuntimeError("[/gloo/pair.cc:7] Connection refused")))
    assert diagnose(formed) == (Cause.LOST, "RuntimeError: Connection refused")
    apart = ControllerError(GroupError("the process group didn't form: rank 1 on b: no route"))
    assert diagnose(apart)[0] is Cause.LOST
    assert final_error(apart, {}) is None
    own = ControllerError(passed_on(UserCodeException("no such mill")))
    assert diagnose(own) == (Cause.RAISED, "UserCodeException: no such mill")
    assert diagnose(ControllerError(passed_on(StorageError("it is away"))))[0] is Cause.LOST
    assert diagnose(ControllerError(passed_on(MemoryError("too much of it"))))[0] is Cause.MEMORY


def test_a_disk_that_is_full_may_take_it_later() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    cause, what = diagnose(WorkerGroupError("text", {0: full}))
    assert cause is Cause.LOST
    assert what == "rank 0: OSError: [Errno 28] No space left on device"


def test_a_file_that_cannot_be_read_counts_as_lost_infrastructure() -> None:
    away = StorageError("/data/00000.parquet can't be read: Stale file handle")
    cause, what = diagnose(WorkerGroupError("text", {0: ValueError("no"), 1: away}))
    assert cause is Cause.RAISED, "what a rank raised goes first"
    cause, what = diagnose(WorkerGroupError("text", {1: away}))
    assert (cause, what) == (Cause.LOST, f"rank 1: StorageError: {away}")
    assert isinstance(decide_retry([Failure(cause, what, 5, 0)] * 3, 3), Retry), (
        "however often alike"
    )
    timed_out = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    assert diagnose(WorkerGroupError("text", {0: timed_out}))[0] is Cause.LOST


def test_sigterm_is_heard_once_and_then_ignored() -> None:
    heard: list[str] = []
    with on_termination(lambda: heard.append("outer")):
        with on_termination(lambda: heard.append("inner")):
            pass
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with on_termination(lambda: heard.append("later")):
            signal.raise_signal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert heard == ["outer", "later"]
    assert ignored is signal.SIG_IGN


def test_before_there_is_anything_to_commit_sigterm_is_preemption_too() -> None:
    with pytest.raises(SystemExit) as ended, on_termination(partial(end_preempted, "again")):
        signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert ended.value.code == EXIT_PREEMPTED
