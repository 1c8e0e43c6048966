"""A terminal line for progress, and one for waits in which nothing else appears."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from raymill import progress_line
from raymill.progress_line import ProgressLine


def test_a_wait_is_reported_only_after_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: now)
    output = io.StringIO()
    line = ProgressLine(10.0, console=Console(file=output, width=80))
    line.say("started")
    for seconds in range(1, 25):
        now = 100.0 + seconds
        if seconds == 15:
            line.say("an event")
        line.idle(f"waiting at {seconds}")
    assert output.getvalue().splitlines() == [
        "started", "waiting at 10", "an event",
    ]  # fmt: skip
    now = 125.0
    line.idle("waiting at 25")
    assert output.getvalue().endswith("waiting at 25\n"), "ten seconds after the event"
