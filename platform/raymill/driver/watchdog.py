"""Watchdog: find a rank that makes no progress, record its stack, and end it, so that the run restarts.

A rank that hangs can't report it, and the others wait for it until their own timeout, which is two hours.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raymill.cluster.placement import results_or_errors, start_on_node
from raymill.engine.heartbeat import COMPILE, HeartbeatRecord
from raymill.errors import StorageError

LEAST_S = 120.0
STEPS = 20  # median steps that a rank may take for one phase
# Before there is a median: the first steps open data and fill caches.
FIRST_S = 1200.0
# Phases whose length doesn't follow from a step's: an evaluation, or a write to slow storage. Where answers are
# sampled and rewarded for a step, that has timeouts of its own.
_LONG = ("evaluate", "commit")
_SAMPLING = "gather"
LONG_S = 3600.0
COMPILE_S = 1800.0  # of a layer's code, within any phase; one rank may do it alone
# At the start all ranks read a checkpoint, or compute a reference model's log-probabilities of all pairs.
START_S = 24 * 3600.0
# After a pause between two looks of this length, the machine slept, or all processes were stopped; such time
# isn't counted against the ranks.
FROZEN_S = 10.0
_STACK_S = 30.0
# Stacks that are kept, that of the rank that is ended first; and those that a node reads at once.
STACKS = 64
_AT_ONCE = 16

# Returns rank → latest record; None where nothing could be read.
ReadHeartbeats = Callable[[], Mapping[int, HeartbeatRecord] | None]
_WAITING = re.compile(r"torch/distributed/|deepspeed/comm/")
_COMMIT_THREAD = '"raymill-commit"'


@dataclass(frozen=True)
class Rank:
    """Process of a rank."""

    number: int
    host: str
    pid: int
    node: str


@dataclass(frozen=True)
class Standing:
    """A rank at the earliest point of all ranks, and the seconds for which it was seen there."""

    rank: Rank
    step: int
    phase: str
    seconds: float


@dataclass(frozen=True)
class ProcessState:
    """State and stack of a rank's process."""

    state: str  # the operating system's name: "stopped", "sleeping", …
    stack: str

    @property
    def waits(self) -> bool:
        """Tell whether a thread, other than the one that commits checkpoints, waits for other ranks."""
        threads = self.stack.split("\nThread ")
        return any(_WAITING.search(text) and _COMMIT_THREAD not in text for text in threads)


class Watchdog:
    """Watchdog of one attempt.

    It uses only its own clock, the time since a rank's heartbeat was seen to change, since the clocks of other
    nodes may differ.
    """

    def __init__(
        self,
        read: ReadHeartbeats,
        workers: int,
        timeout_s: float | None,
        clock: Callable[[], float] = time.monotonic,
        samples: bool = False,
    ) -> None:
        self._read = read
        self._workers = workers
        self._timeout_s = timeout_s
        self._clock = clock
        self._long = (*_LONG, _SAMPLING) if samples else _LONG
        self._seen: dict[int, tuple[float, HeartbeatRecord]] = {}
        self._looked = clock()
        # The rank that has been longest at the earliest point, as of the last look; None before all have begun.
        self.slowest: Standing | None = None

    def look(self, median_step_s: float | None) -> list[Standing]:
        """Return the ranks at the earliest point if none of them has made progress for too long.

        One of them keeps all the others waiting. The one that has been there longest comes first.
        """
        # Time in which no heartbeats can be read isn't counted, now or later.
        try:
            records = self._read()
        except StorageError:
            return []
        if records is None:
            return []
        now = self._clock()
        if (unseen := now - self._looked) > FROZEN_S:
            self._seen = {
                number: (since + unseen, record) for number, (since, record) in self._seen.items()
            }
        self._looked = now
        for number, record in records.items():
            before = self._seen.get(number)
            if before is None or before[1] != record:
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
        self.slowest = behind[0]
        # Any of them may be the one that the others wait for, so each has its own limit: a rank that compiles
        # has more time, and a rank that has just finished compiling starts again.
        if any(rank.seconds < self._limit(rank.phase, median_step_s) for rank in behind):
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


def _rank(number: int, record: HeartbeatRecord) -> Rank:
    return Rank(number, record["host"], record["pid"], record["node"])


def end_one(behind: Sequence[Standing], logs: Path) -> str:
    """Kill the process of the rank that keeps the others waiting, and write its and other candidates' stacks.

    Return one line that describes the rank. All nodes are asked at once, so it takes about two minutes at most.
    """
    seen = _look_at([standing.rank for standing in behind])
    culprit, process = pick_culprit(list(zip(behind, seen, strict=True)))
    rank = culprit.rank
    # It is killed before stacks are written, since a storage that hangs may be what it hangs on.
    killed = start_on_node(rank.node, _kill, rank.pid)
    what = (
        f"rank {rank.number} (process {rank.pid} on {rank.host}) made no progress for "
        f"{culprit.seconds:.0f} s in step {culprit.step}, phase {culprit.phase}"
    )
    if process is None:
        return f"{what}: its node doesn't answer"
    [answer] = results_or_errors([killed], 2 * _STACK_S)
    if isinstance(answer, Exception):
        return f"{what}: its process was {process.state} and can't be killed"
    try:
        stacks = {rank.number: process.stack}
        for standing, candidate in zip(behind, seen, strict=True):
            if candidate is not None and len(stacks) < STACKS:
                stacks.setdefault(standing.rank.number, candidate.stack)
        for number, stack in stacks.items():
            _stack_path(logs, number).write_text(stack, encoding="utf-8")
    except OSError as error:
        return f"{what}: its process was {process.state}; its stack can't be written: {error}"
    return (
        f"{what}: its process was {process.state}; its stack is in {_stack_path(logs, rank.number)}"
    )


def pick_culprit(
    candidates: Sequence[tuple[Standing, ProcessState | None]],
) -> tuple[Standing, ProcessState | None]:
    """Pick the rank that the others wait for, of ranks at the same point.

    A rank that is unreachable or stopped comes first, then a busy one, then one that waits itself; ties go to
    the first candidate.
    """

    def order(candidate: tuple[Standing, ProcessState | None]) -> int:
        seen = candidate[1]
        if seen is None or seen.state == "stopped":
            return 0
        return 2 if seen.waits else 1

    return min(candidates, key=order)


def _stack_path(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank:05d}.stack"


def _look_at(ranks: Sequence[Rank]) -> list[ProcessState | None]:
    """Return the state of each rank's process; None for one whose node doesn't answer."""
    by_node: dict[str, list[Rank]] = defaultdict(list)
    for rank in ranks:
        by_node[rank.node].append(rank)
    # All nodes are asked before the first answer is waited for.
    calls = [
        start_on_node(node, _look_here, [rank.pid for rank in there])
        for node, there in by_node.items()
    ]
    answers = results_or_errors(calls, 3 * _STACK_S)
    states: dict[int, ProcessState] = {}
    for there, answer in zip(by_node.values(), answers, strict=True):
        if not isinstance(answer, Exception):
            for rank, state in zip(there, answer, strict=True):
                states[rank.number] = ProcessState(*state)
    return [states.get(rank.number) for rank in ranks]


def _look_here(pids: Sequence[int]) -> list[tuple[str, str]]:
    """Return the state and stack of processes of this machine."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as threads:
        return list(threads.map(_look_at_process, pids))


def _look_at_process(pid: int) -> tuple[str, str]:
    """Return a process's state and stack, without pausing it: a stopped process can't be paused."""
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
