"""Conversations rendered to learn how a template behaves, and a parser of generated turns built from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymill.data.messages.conversation import Conversation
from raymill.data.messages.keys import JsonObject
from raymill.data.messages.message_layout import ANSWER as ANSWER_WORD
from raymill.data.messages.message_layout import QUESTION, THOUGHT
from raymill.data.messages.template import ChatTemplate
from raymill.data.messages.thinking import opened_thought
from raymill.errors import DataError

__all__ = ["ANSWER", "PROBES", "TurnParser", "build_turn_parser", "tool_call_probe"]

ANSWER: JsonObject = {"role": "assistant", "content": "Hi"}
PROBES = [
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
_ASKED = {"role": "user", "content": QUESTION}
_PLAIN = {"role": "assistant", "content": ANSWER_WORD}


def tool_call_probe(count: int, answered: bool) -> Conversation:
    """Return a conversation with one turn of `count` tool calls, whose results and an answer may follow."""
    # Mistral's templates accept only ids of nine characters.
    calls = [{"type": "function", "id": f"call1234{n}", "function": _CALL} for n in range(count)]
    results: list[JsonObject] = [
        {"role": "tool", "tool_call_id": call["id"], "name": "f", "content": "one"}
        for call in calls
    ]
    turn: JsonObject = {"role": "assistant", "content": "", "tool_calls": calls}
    following: list[JsonObject] = [*results, ANSWER] if answered else []
    return Conversation((*PROBES[0].messages[:1], turn, *following), (_TOOL,))


@dataclass(frozen=True)
class TurnParser:
    """Parse a generated turn into the message that the template would write in the same way.

    `thinking` is the template's own text before the thinking and between it and the content (None: it writes
    no thinking); `plain` is its text before the content of a turn without thinking; `opened` is the beginning
    of a thought with which its generation prompt ends.
    """

    thinking: tuple[str, str] | None
    plain: str
    opened: str

    def read(self, text: str) -> dict[str, str]:
        """Return the message of a turn without its end; text of neither form becomes the content."""
        if self.thinking is not None:
            before, between = self.thinking
            thought, separator, content = text.removeprefix(before).partition(between)
            if separator and text.startswith(before):
                return {"role": "assistant", "content": content, "reasoning_content": thought}
        if self.plain and text.startswith(self.plain):
            return {"role": "assistant", "content": text.removeprefix(self.plain)}
        return {"role": "assistant", "content": self.opened + text}


def build_turn_parser(template: ChatTemplate) -> TurnParser:
    """Learn the form of a template's turns by rendering two of them."""
    # Two turns are rendered, with and without thinking, with words that can be found again.
    thoughtful = _rendered_turn(template, {**_PLAIN, "reasoning_content": THOUGHT})
    before, thought, rest = thoughtful.partition(THOUGHT)
    between, answer, _ = rest.partition(ANSWER_WORD)
    try:
        opened = opened_thought(template.text([_ASKED], prompt=True))
    except DataError:
        opened = ""
    return TurnParser(
        (before, between) if thought and answer and between else None,
        _rendered_turn(template, _PLAIN).partition(ANSWER_WORD)[0],
        opened,
    )


def _rendered_turn(template: ChatTemplate, message: Mapping[str, str]) -> str:
    """Return the assistant's part of a rendered turn, or "" where it can't be separated."""
    try:
        segments = template.segments([_ASKED, message])
    except DataError:
        return ""
    return "".join(segment.text for segment in segments if segment.learned)
