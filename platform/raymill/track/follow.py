"""Reading a journal while it is being written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Follower:
    """Gives a journal's new events at each call; a line not yet complete waits for the next.

    `offset` is the byte behind the last event given, so that following can go on later.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset

    def read(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Events since the last call, at most `limit`; none if the journal doesn't exist yet."""
        return [event for event, _ in self.read_with_offsets(limit)]

    def read_with_offsets(self, limit: int | None = None) -> list[tuple[dict[str, Any], int]]:
        """Like `read`, each event with the offset behind it."""
        events: list[tuple[dict[str, Any], int]] = []
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
                events.append((json.loads(line), self.offset))
        return events
