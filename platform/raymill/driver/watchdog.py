"""Seen from outside: a rank that makes no progress is named, with its stack, and ended; the run goes on.

Whoever hangs can't report it, and the others wait for it until their own limit, which is two hours.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymill.cluster.nodes import answer, on_node
from raymill.engine.heartbeat import COMPILE, read_pulse
from raymill.errors import StorageError

LEAST_S = 120.0
STEPS = 20  # median steps that a rank may take for one phase
FIRST_S = 1200.0  # before there is a median: first steps open data and fill caches
# Phases whose length a step's doesn't tell: an evaluation or a write to slow storage takes what it takes, and
# where answers are sampled and judged for a step, that has limits of its own.
_LONG = ("evaluate", "commit")
_SAMPLING = "gather"
LONG_S = 3600.0
COMPILE_S = 1800.0  # a layer's code, within any phase; a rank may do it alone
# All ranks alike read a checkpoint, or pass a reference model over all pairs.
START_S = 24 * 3600.0
# Without a look for so long, the machine slept, or everything was stopped, the ranks perhaps too.
FROZEN_S = 10.0
_STACK_S = 30.0
_WAITING = re.compile(r"torch/distributed/|deepspeed/comm/")
_COMMIT_THREAD = '"raymill-commit"'


@dataclass(frozen=True)
class Rank:
    """Where a rank's process is."""

    number: int
    host: str
    pid: int
    node: str


@dataclass(frozen=True)
class Standing:
    """A rank at the point that none has got past, and how long the watcher has seen it there."""

    rank: Rank
    step: int
    phase: str
    seconds: float


@dataclass(frozen=True)
class Seen:
    """What a look at a rank's process found."""

    state: str  # as the system calls it: "stopped", "sleeping", …
    stack: str

    @property
    def waits(self) -> bool:
        """Whether one of its threads, but for the one that commits, waits for other ranks."""
        threads = self.stack.split("\nThread ")
        return any(_WAITING.search(text) and _COMMIT_THREAD not in text for text in threads)


class Watchdog:
    """Judges by one clock, its own: how long ago a rank's record was seen to change."""

    def __init__(
        self,
        folder: Path,
        workers: int,
        timeout_s: float | None,
        clock: Callable[[], float] = time.monotonic,
        samples: bool = False,
    ) -> None:
        self._folder = folder
        self._workers = workers
        self._timeout_s = timeout_s
        self._clock = clock
        self._long = (*_LONG, _SAMPLING) if samples else _LONG
        self._seen: dict[int, tuple[float, Mapping[str, Any]]] = {}
        self._looked = clock()

    def look(self, median_step_s: float | None) -> list[Standing]:
        """If every rank has stood still for too long: the ranks at the earliest point, one of which keeps all
        the others waiting; the one that has been there longest comes first."""
        try:
            records = [read_pulse(self._folder, number) for number in range(self._workers)]
        except StorageError:
            return []  # nobody is judged by what can't be seen, nor is that time counted later
        now = self._clock()
        if (unseen := now - self._looked) > FROZEN_S:
            self._seen = {
                number: (since + unseen, record) for number, (since, record) in self._seen.items()
            }
        self._looked = now
        for number, record in enumerate(records):
            before = self._seen.get(number)
            if record is not None and (before is None or before[1] != record):
                self._seen[number] = (now, record)
        if len(self._seen) < self._workers:
            return []
        earliest = min(record["beat"] for _, record in self._seen.values())
        behind = [
            Standing(_rank(number, record), record["step"], record["phase"], now - since)
            for number, (since, record) in sorted(self._seen.items())
            if record["beat"] == earliest
        ]
        behind.sort(key=lambda standing: standing.seconds, reverse=True)
        # Any of them may be the one that the others wait for, so each has its own time: one that compiles has
        # more, and one that is done with it starts anew.
        if any(one.seconds < self._limit(one.phase, median_step_s) for one in behind):
            return []
        return behind

    def _limit(self, phase: str, median_step_s: float | None) -> float:
        if phase == "start":
            return START_S
        if phase == COMPILE:
            return max(COMPILE_S, self._timeout_s or 0.0)
        if phase in self._long:
            return max(LONG_S, self._timeout_s or 0.0)
        if median_step_s is None:
            return max(FIRST_S, self._timeout_s or 0.0)
        return self._timeout_s or max(LEAST_S, STEPS * median_step_s)


def _rank(number: int, record: Mapping[str, Any]) -> Rank:
    return Rank(number, record["host"], record["pid"], record["node"])


def end_one(behind: Sequence[Standing], logs: Path) -> str:
    """Kill the process of the rank that keeps the others waiting, on whatever node it is, and keep the stacks
    of all that may be it; returns what to tell of it."""
    seen = _look_at([standing.rank for standing in behind])
    culprit, found = blamed(list(zip(behind, seen, strict=True)))
    rank = culprit.rank
    # First of all: a storage that hangs may be why it stands still.
    killed = on_node(rank.node, _kill, rank.pid)
    what = (
        f"rank {rank.number} (process {rank.pid} on {rank.host}) made no progress for "
        f"{culprit.seconds:.0f} s in step {culprit.step}, phase {culprit.phase}"
    )
    if found is None:
        return f"{what}: its node doesn't answer"
    if isinstance(_answer(killed), Exception):
        return f"{what}: its process was {found.state} and can't be killed"
    try:
        for standing, one in zip(behind, seen, strict=True):
            if one is not None:
                _stack_path(logs, standing.rank).write_text(one.stack, encoding="utf-8")
    except OSError as error:
        return f"{what}: its process was {found.state}; its stack can't be written: {error}"
    return f"{what}: its process was {found.state}; its stack is in {_stack_path(logs, rank)}"


def blamed(candidates: Sequence[tuple[Standing, Seen | None]]) -> tuple[Standing, Seen | None]:
    """Of ranks at the same point, the one that the others wait for: one whose node doesn't answer, or that is
    stopped, before one that does something of its own, before one that waits itself; then the first."""

    def guilt(candidate: tuple[Standing, Seen | None]) -> int:
        seen = candidate[1]
        if seen is None or seen.state == "stopped":
            return 0
        return 2 if seen.waits else 1

    return min(candidates, key=guilt)


def _stack_path(logs: Path, rank: Rank) -> Path:
    return logs / f"rank-{rank.number:05d}.stack"


def _look_at(ranks: Sequence[Rank]) -> list[Seen | None]:
    """What each rank's process is doing; None for one whose node doesn't answer."""
    found = [
        _answer(asked) for asked in [on_node(rank.node, _look_here, rank.pid) for rank in ranks]
    ]
    return [None if isinstance(seen, Exception) else Seen(*seen) for seen in found]


def _answer(asked: Any) -> Any:
    return answer(asked, 2 * _STACK_S)


def _look_here(pid: int) -> tuple[str, str]:
    """A process's state and stack, without pausing it: what stands still needn't be, and what is stopped
    can't be."""
    import subprocess
    import sys

    import psutil

    try:
        state = str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return "gone", ""
    dumper = Path(sys.executable).with_name("py-spy")
    try:
        done = subprocess.run(
            [str(dumper), "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True, text=True, timeout=_STACK_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return state, f"no stack: {error}"
    return state, done.stdout or done.stderr


def _kill(pid: int) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).kill()
