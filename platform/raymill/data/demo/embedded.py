"""The conversations that are made rather than read, by the name of their source."""

from __future__ import annotations

from collections.abc import Sequence

from raymill.data.chat import stdlib
from raymill.data.chat.stdlib import Entry
from raymill.data.demo import conversations as demo


def entries(source: str, fraction: float, seed: int) -> Sequence[Entry]:
    """Every conversation of `stdlib_chat` or `demo_chat`."""
    made = {"stdlib_chat": stdlib.conversations, "demo_chat": demo.conversations}
    return made[source](fraction, seed)
