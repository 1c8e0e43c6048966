"""Who is named when a run stands still, and who isn't; by the watcher's own clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymill.cluster.watchdog import FIRST_S, LONG_S, Rank, Watchdog
from raymill.engine.pulse import Pulse, read_pulse
from raymill.engine.stragglers import STEPS, Stragglers

RANKS = [Rank(number, f"host-{number}", 100 + number, "node") for number in range(3)]


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pulses(tmp_path: Path) -> list[Pulse]:
    return [Pulse(tmp_path, rank.number) for rank in RANKS]


def beat(pulses: list[Pulse], step: int, *phases: str, but: int | None = None) -> None:
    for number, pulse in enumerate(pulses):
        for phase in phases:
            if number != but:
                pulse.step = step
                pulse.beat(phase)


def test_the_rank_that_is_behind_is_named(
    tmp_path: Path, pulses: list[Pulse], clock: Clock
) -> None:
    watchdog = Watchdog(tmp_path, RANKS, None, clock)
    assert watchdog.look(1.0) is None
    beat(pulses, 7, "data", "forward")
    assert watchdog.look(1.0) is None
    beat(pulses, 7, "backward", "optimizer", but=1)
    clock.now += 1
    assert watchdog.look(1.0) is None
    clock.now += 118
    assert watchdog.look(1.0) is None
    clock.now += 2
    hang = watchdog.look(1.0)
    assert hang is not None
    assert (hang.rank.number, hang.step, hang.phase, hang.seconds) == (1, 7, "forward", 121.0)


def test_slow_is_not_still(tmp_path: Path, pulses: list[Pulse], clock: Clock) -> None:
    watchdog = Watchdog(tmp_path, RANKS, 10.0, clock)
    for step in range(1, 20):
        beat(pulses, step, "data")
        clock.now += 9
        assert watchdog.look(0.1) is None


@pytest.mark.parametrize(
    ("timeout", "median", "phase", "limit"),
    [
        (None, 1.0, "forward", 120.0),
        (None, 30.0, "forward", 600.0),
        (None, None, "forward", FIRST_S),
        (5.0, 30.0, "forward", 5.0),
        (5.0, None, "forward", FIRST_S),
        (None, 1.0, "evaluate", LONG_S),
        (None, 1.0, "gather", LONG_S),
        (None, 1.0, "commit", LONG_S),
    ],
)
def test_limits(
    tmp_path: Path, pulses: list[Pulse], clock: Clock,
    timeout: float | None, median: float | None, phase: str, limit: float,
) -> None:  # fmt: skip
    watchdog = Watchdog(tmp_path, RANKS, timeout, clock)
    beat(pulses, 3, phase)
    assert watchdog.look(median) is None
    clock.now += limit - 0.1
    assert watchdog.look(median) is None
    clock.now += 0.2
    assert watchdog.look(median) is not None


def test_an_attempt_before_says_nothing(tmp_path: Path, pulses: list[Pulse]) -> None:
    beat(pulses, 9, "data")
    assert read_pulse(tmp_path, 2) == {"beat": 1, "step": 9, "phase": "data"}
    Pulse(tmp_path, 2)
    assert read_pulse(tmp_path, 2) is None


def test_stragglers_are_told_once_in_so_many_steps() -> None:
    stragglers = Stragglers()
    fast, slow = {"data": 0.1, "forward": 1.0}, {"data": 0.1, "forward": 2.0}
    told = [stragglers.add(step, [fast, fast, slow]) for step in range(1, 2 * STEPS + 1)]
    assert [step for step, texts in enumerate(told, 1) if texts] == [STEPS, 2 * STEPS]
    [text] = told[STEPS - 1]
    assert text == (
        "rank 2 was 1.9 times as slow as the median rank in steps 1 to 50: data 5.00 s, "
        "forward 100.00 s, median in all 55.00 s"
    )
    even = Stragglers()
    assert not any(even.add(step, [fast, fast, fast]) for step in range(1, 3 * STEPS))
