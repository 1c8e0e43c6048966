"""Generated conversations, by the name of their source."""

from __future__ import annotations

from collections.abc import Sequence

from raymill.data.demo import conversations as demo
from raymill.data.demo import stdlib_conversations as stdlib
from raymill.data.demo.stdlib_conversations import ConversationEntry


def entries(source: str, fraction: float, seed: int) -> Sequence[ConversationEntry]:
    """Return every conversation of `stdlib_chat` or `demo_chat`."""
    if source == "demo_chat":
        return demo.conversations(fraction, seed)
    return stdlib.conversations(fraction, seed)
