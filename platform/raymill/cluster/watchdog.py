"""Seen from outside: a rank that makes no progress is named, with its stack, and ended; the run goes on.

Whoever hangs can't report it, and the others wait for it until their own limit, which is half an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymill.engine.pulse import read_pulse

LEAST_S = 120.0
STEPS = 20  # median steps that a rank may take for one phase
FIRST_S = 1200.0  # before there is a median: first steps open data, compile and fill caches
# Phases whose length a step's doesn't tell: sampling and judging have limits of their own, an evaluation or
# a write to slow storage takes what it takes.
_LONG = ("gather", "evaluate", "commit")
LONG_S = 3600.0
_STACK_S = 30.0


@dataclass(frozen=True)
class Rank:
    """Where a rank's process is."""

    number: int
    host: str
    pid: int
    node: str


@dataclass(frozen=True)
class Hang:
    """A rank that stands still, and what it was doing."""

    rank: Rank
    step: int
    phase: str
    seconds: float


class Watchdog:
    """Judges by one clock, its own: how long ago a rank's record was seen to change."""

    def __init__(
        self,
        folder: Path,
        ranks: Sequence[Rank],
        timeout_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._ranks = ranks
        self._timeout_s = timeout_s
        self._clock = clock
        self._seen: dict[int, tuple[float, Mapping[str, Any]]] = {}

    def look(self, median_step_s: float | None) -> Hang | None:
        """The rank that keeps the others waiting, if every rank has stood still for too long: of those at the
        earliest point, the one that has been there longest."""
        now = self._clock()
        for rank in self._ranks:
            record = read_pulse(self._folder, rank.number)
            before = self._seen.get(rank.number)
            if record is not None and (before is None or before[1] != record):
                self._seen[rank.number] = (now, record)
        if len(self._seen) < len(self._ranks):
            return None
        behind = min(self._ranks, key=lambda rank: self._order(rank.number))
        since, last = self._seen[behind.number]
        if now - since < self._limit(last["phase"], median_step_s):
            return None
        return Hang(behind, last["step"], last["phase"], now - since)

    def _order(self, number: int) -> tuple[int, float]:
        since, record = self._seen[number]
        return record["beat"], since

    def _limit(self, phase: str, median_step_s: float | None) -> float:
        if phase in _LONG:
            return max(LONG_S, self._timeout_s or 0.0)
        if median_step_s is None:
            return max(FIRST_S, self._timeout_s or 0.0)
        return self._timeout_s or max(LEAST_S, STEPS * median_step_s)


def end(rank: Rank, logs: Path) -> str:
    """Write down a rank's stack and kill its process, on whatever node it is; returns what was found out."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(rank.node, soft=False)
    work = ray.remote(num_cpus=0, scheduling_strategy=there, max_retries=0)(_end_here)
    try:
        found: str = ray.get(
            work.remote(rank.pid, str(logs / f"rank-{rank.number:05d}.stack")), timeout=2 * _STACK_S
        )
    except ray.exceptions.RayError as error:
        return f"its node doesn't answer ({type(error).__name__})"
    return found


def _end_here(pid: int, path: str) -> str:
    """On the rank's node."""
    import subprocess
    import sys

    import psutil

    try:
        process = psutil.Process(pid)
        state = process.status()
    except psutil.NoSuchProcess:
        return "its process has ended"
    # Without pausing it: what stands still needn't be, and what is stopped can't be.
    dumper = Path(sys.executable).with_name("py-spy")
    try:
        done = subprocess.run(
            [str(dumper), "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True, text=True, timeout=_STACK_S, check=False,
        )  # fmt: skip
        stack = done.stdout or done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        stack = f"no stack: {error}"
    process.kill()  # first: a storage that hangs may be why it stands still
    try:
        Path(path).write_text(stack, encoding="utf-8")
    except OSError as error:
        return f"its process was {state}; its stack can't be written: {error}"
    return f"its process was {state}; its stack is in {path}"
