"""Reading a journal while it is being written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from raymill.engine.event_log import attempts_in
from raymill.reading import MISSING, retried, status

_LONGEST_LINE = 2**20  # bytes

# An event of a run's journal: `kind`, `step`, `attempt` and `time`, and the metrics of its kind by name.
Event = dict[str, Any]


class Follower:
    """Gives a journal's new events at each call; a line not yet complete waits for the next.

    `offset` is the byte behind the last event given, so that following can go on later. What an attempt
    writes after a newer one has begun is left out: it had lost the run.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self._attempt = 0

    @classmethod
    def at_end(cls, path: Path) -> Follower:
        """One that gives what is written from now on. A line that a killed writer left half-written is no
        end: it will be cut off; and what an attempt of before still writes isn't given."""
        found = status(path)
        if found is None:
            return cls(path)
        begin = max(0, found.st_size - _LONGEST_LINE)
        tail = b"".join(_lines(path, begin))
        follower = cls(path, begin + tail.rfind(b"\n") + 1)
        follower._attempt = 1 + attempts_in(path)
        return follower

    def read(self, limit: int | None = None) -> list[Event]:
        """Events since the last call, of at most `limit` lines; none if the journal doesn't exist yet."""
        events: list[Event] = []
        for line in _lines(self.path, self.offset, limit):
            if not line.endswith(b"\n"):
                break
            self.offset += len(line)
            event = json.loads(line)
            attempt = event.get("attempt", self._attempt)
            if attempt >= self._attempt:
                self._attempt = attempt
                events.append(event)
        return events


def _lines(path: Path, offset: int, limit: int | None = None) -> list[bytes]:
    """A file's lines from an offset on, at most `limit`; none where there is no file."""

    def read() -> list[bytes]:
        with path.open("rb") as stream:
            stream.seek(offset)
            return list(islice(stream, limit))

    try:
        return retried(path, read)
    except MISSING:
        return []


def last_of_each_step(events: Iterable[Event], kind: str) -> list[Event]:
    """One event of `kind` a step, in order: a step that was replayed counts as last written."""
    latest = {event["step"]: event for event in events if event["kind"] == kind}
    return [latest[step] for step in sorted(latest)]
