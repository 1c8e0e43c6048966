"""The conversations that are made rather than read, by the name of their source."""

from __future__ import annotations

from collections.abc import Sequence

from raymill.data.chat import stdlib
from raymill.data.chat.stdlib import Entry
from raymill.data.demo import conversations as demo


def entries(source: str, fraction: float, seed: int) -> Sequence[Entry]:
    """Every conversation of `stdlib_chat` or `demo_chat`."""
    if source == "demo_chat":
        return demo.conversations(fraction, seed)
    return stdlib.conversations(fraction, seed)
