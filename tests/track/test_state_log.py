"""The state log and the event log, written and read around kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymill.durable import cut_torn_line
from raymill.engine.event_log import EventLog, attempts_in, write_table
from raymill.track.follow import Follower
from raymill.track.state_log import HISTORY_NAME, StateLog, read_history


def test_a_torn_line_is_cut_off_before_the_next(tmp_path: Path) -> None:
    StateLog(tmp_path, 1).enter("starting", workers=2)
    path = tmp_path / HISTORY_NAME
    path.write_text(path.read_text() + '{"time": 1.0, "tok')
    assert [line["state"] for line in read_history(tmp_path)] == ["starting"]
    history = StateLog(tmp_path, 2)
    history.enter("starting")
    history.enter("starting")
    assert [line["token"] for line in read_history(tmp_path)] == [1, 2]


def test_files_without_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    cut_torn_line(path)
    assert not path.exists()
    for data, left in ((b"", b""), (b"torn", b""), (b"a\n", b"a\n"), (b"a\n" + b"b" * 9, b"a\n")):
        path.write_bytes(data)
        cut_torn_line(path)
        assert path.read_bytes() == left


def test_a_disk_that_took_half_a_line_spoils_no_other(tmp_path: Path) -> None:
    history = StateLog(tmp_path, 1)
    history.enter("starting")
    with (tmp_path / "history.jsonl").open("a") as stream:
        stream.write('{"time": 1.0, "tok')
    history.enter("running")
    assert [line["state"] for line in read_history(tmp_path)] == ["starting", "running"]


def test_a_torn_attempt_is_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "attempt", "step": 0}\n{"kind": "attempt", "st')
    assert attempts_in(path) == 1
    assert EventLog(path).attempt == 2


def test_a_disk_that_takes_nothing_ends_no_run(tmp_path: Path) -> None:
    history = StateLog(tmp_path, 1)
    (tmp_path / HISTORY_NAME).mkdir()
    history.enter("running")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_journal_keeps_what_a_full_disk_refuses(tmp_path: Path) -> None:
    event_log = EventLog(tmp_path / "metrics.jsonl")
    free = event_log._stream
    with Path("/dev/full").open("ab", buffering=0) as event_log._stream:
        event_log.write("step", 1)
        event_log.write("step", 2)
    event_log._stream = free
    event_log.write("step", 3)
    events = Follower(event_log.path).read()
    assert [event["step"] for event in events] == [1, 2, 3]


def test_what_the_disk_refuses_beside_the_journal_is_told(tmp_path: Path) -> None:
    """The run continues without an optional file, such as a table of samples."""
    event_log = EventLog(tmp_path / "metrics.jsonl")
    (tmp_path / "samples").write_text("in the way")
    write_table(tmp_path, event_log, "answers", 7, ("a",), [("b",)])
    [event] = Follower(event_log.path).read()
    assert (event["kind"], event["step"]) == ("message", 7)
    assert event["text"].startswith("the table of answers of step 7 can't be written: [Errno 17]")
