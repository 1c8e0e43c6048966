"""Reading a journal while it is being written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Follower:
    """Gives a journal's new events at each call; a line not yet complete waits for the next.

    `offset` is the byte behind the last event given, so that following can go on later. What an attempt
    writes after a newer one has begun is left out: it had lost the run.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self._attempt = 0

    def read(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Events since the last call, at most `limit`; none if the journal doesn't exist yet."""
        events: list[dict[str, Any]] = []
        try:
            stream = self.path.open("rb")
        except FileNotFoundError:
            return events
        with stream:
            stream.seek(self.offset)
            for line in stream:
                if not line.endswith(b"\n") or (limit is not None and len(events) >= limit):
                    break
                self.offset += len(line)
                event = json.loads(line)
                if event["attempt"] >= self._attempt:
                    self._attempt = event["attempt"]
                    events.append(event)
        return events


def last_of_each_step(events: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """One event of `kind` a step, in order: a step that was replayed counts as last written."""
    latest = {event["step"]: event for event in events if event["kind"] == kind}
    return [latest[step] for step in sorted(latest)]
