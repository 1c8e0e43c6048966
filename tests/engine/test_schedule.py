"""Schedules compared with their formulas, and the event log."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from raymill.engine.event_log import EventLog
from raymill.engine.schedule import learning_rate_factor
from raymill.schema.sections import ScheduleConfig
from sections import plain


def test_cosine() -> None:
    schedule = plain(ScheduleConfig, "cosine", warmup_steps=10, final_fraction=0.1)
    assert learning_rate_factor(schedule, 5, 110) == 0.5
    assert learning_rate_factor(schedule, 10, 110) == 1.0
    expected = 0.1 + 0.9 * (1 + math.cos(math.pi * 0.3)) / 2
    assert learning_rate_factor(schedule, 40, 110) == pytest.approx(expected, rel=1e-12)
    assert learning_rate_factor(schedule, 110, 110) == pytest.approx(0.1)


def test_wsd_is_flat_and_then_falls() -> None:
    schedule = plain(ScheduleConfig, "wsd", warmup_steps=4, decay_fraction=0.2)
    factors = [learning_rate_factor(schedule, step, 100) for step in range(1, 101)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(factors[4:80]) == {1.0}
    assert factors[89] == pytest.approx(0.5)
    assert factors[-1] == 0.0


def test_linear_and_constant() -> None:
    assert learning_rate_factor(plain(ScheduleConfig, "linear"), 25, 100) == pytest.approx(0.75)
    assert learning_rate_factor(plain(ScheduleConfig, "constant", warmup_steps=2), 99, 100) == 1.0


def test_no_update_is_wasted_at_rate_zero_at_the_start() -> None:
    for name in ("wsd", "cosine", "linear", "constant"):
        assert learning_rate_factor(plain(ScheduleConfig, name, warmup_steps=3), 1, 10) > 0  # type: ignore[arg-type]


def test_journal_counts_attempts_and_cuts_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = EventLog(path)
    first.write("attempt", 0)
    first.write("step", 1, **{"train/loss": float("nan")})
    with path.open("a") as stream:
        stream.write('{"kind": "step", "ste')
    second = EventLog(path)
    second.write("attempt", 1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["attempt"] for line in lines] == [1, 1, 2]
    assert lines[1]["train/loss"] is None
