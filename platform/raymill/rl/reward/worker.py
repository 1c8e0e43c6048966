"""Worker process in which a pool calls reward functions; it starts fast, and imports only what they need.

Frames on both pipes: four bytes of length, then a pickle (from the pool, which is trusted) or JSON (to the
pool). Functions may print and read: the pipes are moved away from the standard streams first.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import resource
import struct
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from raymill.parent_death import die_with
from raymill.rl.reward.functions import resolve
from raymill.rl.reward.task import RewardError, Sample, Score, failed_score, limit_call, score_of

HEADER = struct.Struct(">I")


@dataclass(frozen=True)
class Setup:
    """First frame. `names`: functions to load before calls are timed."""

    names: tuple[str, ...]
    memory_bytes: int


@dataclass(frozen=True)
class Call:
    """Every later frame: a call of a function."""

    name: str
    sample: Sample
    timeout_s: float


def main() -> None:
    """Serve calls until the pool closes its pipe or dies."""
    die_with(int(sys.argv[1]))
    requests, replies = _take_pipes()
    setup: Setup = receive(requests)
    _limit_memory(setup.memory_bytes)
    for name in setup.names:
        # Each call raises the error again, and reports it.
        with contextlib.suppress(RewardError):
            resolve(name)
    send(replies, {})
    while (call := receive(requests)) is not None:
        send(replies, asdict(score_call(call)))


def score_call(call: Call) -> Score:
    """Call the function; any exception becomes an error."""
    # Seeded so that functions that draw at random give the same result in any worker and after a restart.
    random.seed(f"{call.name}\0{call.sample.answer_text}")
    started = time.monotonic()
    try:
        limit_call(call.timeout_s)
        value = resolve(call.name)(call.sample)
        return score_of(value, time.monotonic() - started)
    except RewardError as error:
        return failed_score(str(error), time.monotonic() - started)
    except BaseException as error:  # noqa: BLE001  (the user's function may even exit)
        return failed_score(f"raised {type(error).__name__}: {error}", time.monotonic() - started)


def receive(stream: BinaryIO) -> Any:
    """Return the next frame's object, or None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    return pickle.loads(stream.read(HEADER.unpack(header)[0]))


def send(stream: BinaryIO, reply: dict[str, Any]) -> None:
    """Write a frame."""
    body = json.dumps(reply).encode()
    stream.write(HEADER.pack(len(body)) + body)
    stream.flush()


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return the pool's streams, and redirect the standard ones: functions read nothing and print to stderr."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, replies


def _limit_memory(limit: int) -> None:
    """Limit the data of this process; a function that takes more gets a MemoryError.

    The address space isn't limited, because CUDA's libraries reserve far more of it than they use. Should the
    machine run out of memory, the kernel kills this process before one that trains.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    if sys.platform.startswith("linux"):
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
            stream.write("1000")


if __name__ == "__main__":
    main()
