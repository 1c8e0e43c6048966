"""A failure is reported by its innermost cause, whatever libraries have wrapped around it."""

from __future__ import annotations

import subprocess
import traceback
from collections.abc import Callable

import pytest
import ray
from ray.exceptions import ActorDiedError, RaySystemError, RayTaskError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import ControllerError
from torch._dynamo.exc import BackendCompilerFailed
from torch._utils import ExceptionWrapper

from raymill.causes import LONGEST, cause_of, innermost
from raymill.errors import ConfigError, DataError

INNER = "ValueError: there is no such mill"


def fails() -> None:
    raise ValueError("there is no such mill\nand a second line")


def wraps() -> None:
    try:
        fails()
    except ValueError as error:
        raise RuntimeError("a step failed") from error


def raised_by(work: Callable[[], object]) -> BaseException:
    try:
        work()
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError("it raised nothing")


def stored(error: BaseException) -> RayTaskError:
    """Return what Ray makes of an error in a task."""
    text = "".join(traceback.format_exception(error))
    bare = type(error)(*error.args)  # its own cause doesn't travel
    return RayTaskError("execute", text, bare, "ray::execute", 88, "10.0.0.2", None, "a1")


def of_a_task(error: BaseException) -> RayTaskError:
    """Return a task's error as it arrives in another process."""
    return stored(error).as_instanceof_cause()


def of_a_data_loader() -> BaseException:
    return raised_by(
        ExceptionWrapper(where="in DataLoader worker process 0", exc_info=_info()).reraise
    )


def _info() -> object:
    error = raised_by(fails)
    return type(error), error, error.__traceback__


def test_what_ray_torch_and_python_wrap() -> None:
    plain, chained = raised_by(fails), raised_by(wraps)
    for error in (
        plain,
        chained,
        of_a_task(plain),
        of_a_task(chained),
        ControllerError(of_a_task(chained)),  # type: ignore[arg-type]
        WorkerHealthCheckFailedError("a worker health check failed", of_a_task(plain)),  # type: ignore[arg-type]
        UserExceptionWithTraceback(chained, "text"),
        ActorDiedError(stored(chained)),
        RaySystemError("it failed", "".join(traceback.format_exception(chained))),
        of_a_data_loader(),
        ExceptionGroup("several", [ValueError("there is no such mill"), KeyError("x")]),
        BackendCompilerFailed(print, ValueError("there is no such mill"), None),
    ):
        assert cause_of(error) == INNER, repr(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[/a/gloo/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:1"),
         "RuntimeError: Connection closed by peer [10.0.0.2]:1"),
        (RuntimeError("CUDA error: an illegal access\nCUDA kernel errors might be reported later\n"),
         "RuntimeError: CUDA error: an illegal access"),
        (RuntimeError("no address Exception raised from init at x.cpp:7 (most recent call first):\nframe #0"),
         "RuntimeError: no address"),
        (RuntimeError(
            "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled system error, NCCL version 2.27\n"
            "ncclSystemError: Call failed.\nLast error:\nsocketStartConnect: connecting to 10.0.0.2 fails"),
         "RuntimeError: socketStartConnect: connecting to 10.0.0.2 fails"),
        (ValueError("1 validation error for ZeroConfig\nstage\n  Input should be at most 3 [type=enum]"),
         "ValueError: ZeroConfig.stage: Input should be at most 3"),
        (RuntimeError("Error building extension 'shm': c++ a.cpp\na.cpp:3:10: fatal error: no header\n"),
         "RuntimeError: a.cpp:3:10: fatal error: no header"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError(), "ValueError: no message"),
        (ValueError("x" * 9 * LONGEST), f"ValueError: {'x' * (LONGEST - 14)} …"),
        (ConfigError(["no such key", "no such value"]),
         "ConfigError: 2 problems in the configuration: 1. no such key 2. no such value"),
        (subprocess.CalledProcessError(2, "ninja", b"", b"ninja: no work\n"),
         "CalledProcessError: Command 'ninja' returned non-zero exit status 2. ninja: no work"),
    ],
)  # fmt: skip
def test_the_line_that_says_it(error: BaseException, expected: str) -> None:
    assert cause_of(error) == expected


def test_a_word_is_passed_over_for_what_explains_it() -> None:
    explained = ValueError("the checkpoint has no moments")
    explained.__cause__ = KeyError("exp_avg")
    assert cause_of(explained) == "ValueError: the checkpoint has no moments"
    built = RuntimeError("Error building extension 'shm': a.cpp:3:10: error: no header")
    built.__cause__ = subprocess.CalledProcessError(1, ["ninja"])
    assert cause_of(built) == f"RuntimeError: {built}"


def test_what_was_written_for_the_user_is_kept() -> None:
    error = DataError("shard 3 is missing: prepare the data again")
    error.__cause__ = FileNotFoundError(2, "No such file or directory", "shard-3")
    assert innermost(of_a_task(error)).args == error.args
    assert cause_of(of_a_task(error)) == f"DataError: {error}"


def test_circles_end() -> None:
    one, other = ValueError("the one"), ValueError("the other")
    one.__cause__, other.__cause__ = other, one
    assert cause_of(one) == "ValueError: the other"


@pytest.mark.usefixtures("ray_session")
def test_errors_as_ray_delivers_them() -> None:
    """Errors of a task, of one that waited, from an actor that couldn't be made, from Ray Data, and
    where the class can't be sent."""

    @ray.remote
    def task() -> None:
        wraps()

    @ray.remote
    def waits() -> None:
        ray.get(task.remote())

    @ray.remote
    def cannot_be_sent() -> None:
        class OwnError(Exception):
            def __init__(self, one: str, two: str) -> None:
                super().__init__(f"no {one}, no {two}")

        raise OwnError("mill", "miller")

    @ray.remote
    class Actor:
        def __init__(self) -> None:
            wraps()

        def work(self) -> None: ...

    assert cause_of(raised_by(lambda: ray.get(task.remote()))) == INNER
    assert cause_of(raised_by(lambda: ray.get(waits.remote()))) == INNER
    assert cause_of(raised_by(lambda: ray.get(Actor.remote().work.remote()))) == INNER
    assert (
        cause_of(raised_by(lambda: ray.get(cannot_be_sent.remote())))
        == "OwnError: no mill, no miller"
    )
    rows = ray.data.range(1).map(lambda row: wraps())
    assert cause_of(raised_by(rows.take_all)) == INNER
