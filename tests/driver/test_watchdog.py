"""The rank that the watchdog names when a run hangs, by the watchdog's own clock."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from faults.weather import Weather
from raymill import reading
from raymill.driver.watchdog import (
    COMPILE_S,
    FIRST_S,
    FROZEN_S,
    LONG_S,
    START_S,
    ProcessState,
    Rank,
    Standing,
    Watchdog,
    pick_culprit,
)
from raymill.engine.heartbeat import Heartbeat, process_location, read_heartbeats

RANKS = [Rank(number, **process_location()) for number in range(3)]


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pulses(tmp_path: Path) -> list[Heartbeat]:
    return [Heartbeat(tmp_path, rank.number) for rank in RANKS]


def look_for(watchdog: Watchdog, clock: Clock, seconds: float, median: float | None) -> Any:
    """Look on for so long, as a driver does; what the last look finds."""
    end = clock.now + seconds
    while clock.now + FROZEN_S < end:
        clock.now += FROZEN_S
        assert watchdog.look(median) == []
    clock.now = end
    return watchdog.look(median)


def beat(pulses: list[Heartbeat], step: int, *phases: str, but: int | None = None) -> None:
    for number, heartbeat in enumerate(pulses):
        for phase in phases:
            if number != but:
                heartbeat.step = step
                heartbeat.beat(phase)


def test_nobody_is_blamed_for_a_record_that_cannot_be_read(
    tmp_path: Path, pulses: list[Heartbeat], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAUSE_S", 0.0)
    weather = Weather(monkeypatch)
    watchdog = Watchdog(partial(read_heartbeats, tmp_path), len(RANKS), None, clock)
    beat(pulses, 7, "data", "forward")
    assert watchdog.look(1.0) == []
    weather.away(tmp_path / "rank-00001.pulse", times=10**6)
    assert look_for(watchdog, clock, 2000.0, 1.0) == []
    assert weather.met > 0
    weather.clear()
    assert watchdog.look(1.0) == [], "the time in which nothing was seen isn't counted"
    assert look_for(watchdog, clock, 110.0, 1.0) == []
    assert look_for(watchdog, clock, 10.0, 1.0) != [], "and that after it is"


def test_the_rank_that_is_behind_is_named(
    tmp_path: Path, pulses: list[Heartbeat], clock: Clock
) -> None:
    watchdog = Watchdog(partial(read_heartbeats, tmp_path), len(RANKS), None, clock)
    assert watchdog.look(1.0) == []
    assert watchdog.slowest is None, "no rank has begun"
    beat(pulses, 7, "data", "forward")
    assert watchdog.look(1.0) == []
    beat(pulses, 7, "backward", "optimizer", but=1)
    clock.now += 1
    assert watchdog.look(1.0) == []
    assert look_for(watchdog, clock, 118, 1.0) == []
    assert watchdog.slowest == Standing(RANKS[1], 7, "forward", 119.0), "shown on a quiet terminal"
    assert look_for(watchdog, clock, 2, 1.0) == [Standing(RANKS[1], 7, "forward", 121.0)]


def test_a_time_in_which_nobody_looked_counts_for_nothing(
    tmp_path: Path, pulses: list[Heartbeat], clock: Clock
) -> None:
    """The driver was stopped, or the whole machine was: its ranks were too, perhaps."""
    watchdog = Watchdog(partial(read_heartbeats, tmp_path), len(RANKS), None, clock)
    beat(pulses, 7, "forward")
    assert watchdog.look(1.0) == []
    assert look_for(watchdog, clock, 100, 1.0) == []
    clock.now += 7 * 3600
    assert watchdog.look(1.0) == []
    assert look_for(watchdog, clock, 19, 1.0) == []
    [first, *_] = look_for(watchdog, clock, 2, 1.0)
    assert first.seconds == 121.0


WORKING = """Process 7: ray::RayTrainWorker
Thread 0x1 (idle): "MainThread"
    main_loop (ray/_private/worker.py:1012)
Thread 0x2 (idle): "Thread-2"
    sleep (my/objective.py:3)
    train_worker (raymill/driver/worker.py:58)
"""
WAITING = WORKING.replace("my/objective.py:3", "torch/distributed/distributed_c10d.py:4000")
COMMITTING = f"""{WORKING}Thread 0x3 (idle): "raymill-commit"
    all_gather_object (torch/distributed/distributed_c10d.py:3000)
"""


@pytest.mark.parametrize(
    "found",
    [
        [
            ProcessState("sleeping", WAITING),
            ProcessState("stopped", WAITING),
            ProcessState("sleeping", WORKING),
        ],
        [
            ProcessState("sleeping", WAITING),
            ProcessState("sleeping", WORKING),
            ProcessState("sleeping", WAITING),
        ],
        [
            ProcessState("sleeping", WAITING),
            ProcessState("sleeping", COMMITTING),
            ProcessState("sleeping", WAITING),
        ],
        [ProcessState("sleeping", WAITING), None, ProcessState("sleeping", WORKING)],
    ],
)
def test_of_those_at_the_same_point_the_one_that_does_not_wait_is_blamed(
    found: list[ProcessState | None],
) -> None:
    standing = [Standing(rank, 7, "forward", 121.0) for rank in RANKS]
    assert pick_culprit(list(zip(standing, found, strict=True)))[0].rank is RANKS[1]
    alike = [ProcessState("sleeping", WAITING)] * 3
    assert pick_culprit(list(zip(standing, alike, strict=True)))[0].rank is RANKS[0]


def test_slow_is_not_still(tmp_path: Path, pulses: list[Heartbeat], clock: Clock) -> None:
    watchdog = Watchdog(partial(read_heartbeats, tmp_path), len(RANKS), 10.0, clock)
    for step in range(1, 20):
        beat(pulses, step, "data")
        clock.now += 9
        assert watchdog.look(0.1) == []


@pytest.mark.parametrize(
    ("timeout", "median", "phase", "limit"),
    [
        (None, 1.0, "forward", 120.0),
        (None, 30.0, "forward", 600.0),
        (None, None, "forward", FIRST_S),
        (5.0, 30.0, "forward", 5.0),
        (5.0, None, "forward", FIRST_S),
        (5.0, None, "start", START_S),
        (None, 1.0, "evaluate", LONG_S),
        (None, 1.0, "gather", LONG_S),
        (None, 1.0, "commit", LONG_S),
        (None, 1.0, "compile", COMPILE_S),
        (5.0, 1.0, "compile", COMPILE_S),
    ],
)
def test_limits(
    tmp_path: Path, pulses: list[Heartbeat], clock: Clock,
    timeout: float | None, median: float | None, phase: str, limit: float,
) -> None:  # fmt: skip
    watchdog = Watchdog(
        partial(read_heartbeats, tmp_path), len(RANKS), timeout, clock, samples=True
    )
    beat(pulses, 3, phase)
    assert watchdog.look(median) == []
    assert look_for(watchdog, clock, limit - 0.1, median) == []
    assert look_for(watchdog, clock, 0.2, median)


def test_who_compiles_alone_is_waited_for(
    tmp_path: Path, pulses: list[Heartbeat], clock: Clock
) -> None:
    """The rank isn't behind for that, in any phase; the ranks that are through wait longer than their limit."""
    watchdog = Watchdog(partial(read_heartbeats, tmp_path), len(RANKS), 10.0, clock)
    beat(pulses, 7, "forward")
    assert watchdog.look(1.0) == []
    clock.now += 5
    pulses[1].aside("compile")
    assert watchdog.look(1.0) == []
    assert look_for(watchdog, clock, COMPILE_S - 1, 1.0) == []
    pulses[1].aside(None)
    assert look_for(watchdog, clock, 1, 1.0) == [], (
        "it goes on with its phase, which takes time too"
    )
    assert look_for(watchdog, clock, 8, 1.0) == []
    assert {standing.phase for standing in look_for(watchdog, clock, 2, 1.0)} == {"forward"}
    pulses[1].aside("compile")
    assert watchdog.look(1.0) == []
    assert look_for(watchdog, clock, COMPILE_S - 1, 1.0) == []
    late = look_for(watchdog, clock, 2, 1.0)
    assert [one.phase for one in late if one.rank == RANKS[1]] == ["compile"]


def test_rows_that_are_given_are_gathered_in_no_time(
    tmp_path: Path, pulses: list[Heartbeat], clock: Clock
) -> None:
    watchdog = Watchdog(partial(read_heartbeats, tmp_path), len(RANKS), None, clock)
    beat(pulses, 3, "gather")
    assert watchdog.look(1.0) == []
    assert look_for(watchdog, clock, 119, 1.0) == []
    assert len(look_for(watchdog, clock, 2, 1.0)) == 3


def test_an_attempt_before_says_nothing(tmp_path: Path, pulses: list[Heartbeat]) -> None:
    beat(pulses, 9, "data")
    last = {"beat": 1, "step": 9, "phase": "data"} | process_location()
    assert read_heartbeats(tmp_path) == dict.fromkeys(range(3), last)
    Heartbeat(tmp_path, 2)
    assert list(read_heartbeats(tmp_path)) == [0, 1]
