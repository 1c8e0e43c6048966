"""Conversations that are rendered to find out what a template does."""

from __future__ import annotations

from typing import Any

from raymill.data.messages.conversation import Conversation

__all__ = ["ANSWER", "EXCHANGES", "calling"]

ANSWER = {"role": "assistant", "content": "Hi"}
EXCHANGES = [
    Conversation(({"role": "user", "content": "Hello"}, answer))
    for answer in (ANSWER, {**ANSWER, "reasoning_content": "A greeting"})
]
_CALL = {"name": "f", "arguments": {"x": 1}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "Gives a number.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer", "description": "Which one."}},
        },
    },
}


def calling(count: int, answered: bool) -> Conversation:
    """A turn with that many calls of a tool, which is the last, or whose results are `answered`."""
    # Mistral's templates take no other ids than of nine characters.
    calls = [{"type": "function", "id": f"call1234{n}", "function": _CALL} for n in range(count)]
    results: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": call["id"], "name": "f", "content": "one"}
        for call in calls
    ]
    turn = {"role": "assistant", "content": "", "tool_calls": calls}
    behind = (*results, ANSWER) if answered else ()
    return Conversation((*EXCHANGES[0].messages[:1], turn, *behind), (_TOOL,))
