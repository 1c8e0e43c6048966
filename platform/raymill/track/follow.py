"""Reading of an event log while it is being written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from raymill.engine.event_log import Event, attempts_in
from raymill.reading import MISSING, retried, status

_LONGEST_LINE = 2**20  # bytes


class Follower:
    """Returns an event log's new events at each call; an incomplete line waits for the next call.

    `offset` is the end of the last event returned, in bytes, from which reading can continue later. Events that
    an attempt writes after a newer attempt has started are left out, since the run was no longer its own.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self._attempt = 0

    @classmethod
    def at_end(cls, path: Path) -> Follower:
        """Return a follower of the events that the next attempt writes.

        It starts at the last complete line, since the next attempt cuts off a half-written one.
        """
        stat = status(path)
        if stat is None:
            return cls(path)
        start = max(0, stat.st_size - _LONGEST_LINE)
        tail = b"".join(_lines(path, start))
        follower = cls(path, start + tail.rfind(b"\n") + 1)
        follower._attempt = 1 + attempts_in(path)
        return follower

    def read(self, limit: int | None = None) -> list[Event]:
        """Return the events since the last call, at most `limit` lines; none if the log doesn't exist yet."""
        events: list[Event] = []
        # An incomplete line is still being written, or will be cut off by the next attempt.
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
    """Return a file's lines from an offset on, at most `limit`; none if there is no file."""

    def read() -> list[bytes]:
        with path.open("rb") as stream:
            stream.seek(offset)
            return list(islice(stream, limit))

    try:
        return retried(path, read)
    except MISSING:
        return []


def last_of_each_step(events: Iterable[Event], kind: str) -> list[Event]:
    """Return one event of `kind` per step, in order: the last one written, where a step was repeated."""
    # Later events overwrite earlier ones of the same step.
    latest = {event["step"]: event for event in events if event["kind"] == kind}
    return [latest[step] for step in sorted(latest)]
