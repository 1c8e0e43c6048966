"""The form in which a template takes messages: found by trying it out.

Raymill's messages have `content` as text, an assistant's thinking as `reasoning_content`, and the
arguments of tool calls as an object. Templates differ: some read `thinking` or `reasoning`, some the
content's parts, some arguments that are JSON text already. Which of them a template reads is seen
when it renders a message that has a word in that place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from raymill.errors import DataError

Messages = Sequence[Mapping[str, Any]]
Where = Literal["reasoning_content", "thinking", "reasoning", "part", "content"]

QUESTION, ANSWER, THOUGHT = "question-6b1f", "answer-93ce", "thought-d47a"
_ASKED = {"role": "user", "content": QUESTION}
_KEY, _VALUE = "argument-2e", "value-58"
_CALL = {
    "type": "function",
    "id": "call12345",
    "function": {"name": "f", "arguments": {_KEY: _VALUE}},
}


@dataclass(frozen=True)
class Spelling:
    """`thinking`: the key that a template reads it from, or a part of the content, or the content
    itself, between <think> and </think>. `parts`: content is a list. `text_arguments`: arguments are
    JSON text."""

    thinking: Where = "reasoning_content"
    parts: bool = False
    text_arguments: bool = False

    def apply(self, messages: Messages) -> list[dict[str, Any]]:
        """The messages in this form."""
        return [self._apply(message) for message in messages]

    def _apply(self, message: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(message)
        thinking = found.get("reasoning_content")
        if isinstance(thinking, str) and self.thinking != "reasoning_content":
            del found["reasoning_content"]
            self._place(found, thinking)
        if self.parts and isinstance(found.get("content"), str):
            found["content"] = [{"type": "text", "text": found["content"]}]
        if self.text_arguments and found.get("tool_calls"):
            found["tool_calls"] = [_with_text_arguments(call) for call in found["tool_calls"]]
        return found

    def _place(self, message: dict[str, Any], thinking: str) -> None:
        content = message.get("content") or ""
        if self.thinking == "content":
            message["content"] = f"<think>\n{thinking}\n</think>\n\n{content}"
        elif self.thinking == "part":
            parts = [{"type": "thinking", "thinking": thinking}]
            message["content"] = parts + ([{"type": "text", "text": content}] if content else [])
        else:
            message[self.thinking] = thinking


def find_spelling(source: str, render: Callable[[Messages], str]) -> Spelling:
    """The form that a template reads. `render` takes messages as they are; raises DataError.

    What the source doesn't mention isn't tried, so that most templates are rendered once or twice.
    """
    spelling = Spelling()
    plain = {"role": "assistant", "content": ANSWER}
    if re.search(r"\btext\b", source) and not _writes(render, spelling, plain, QUESTION, ANSWER):
        in_parts = replace(spelling, parts=True)
        if _writes(render, in_parts, plain, QUESTION, ANSWER):
            spelling = in_parts
    thoughtful = {**plain, "reasoning_content": THOUGHT}
    for where in _thinking_places(source):
        tried = replace(spelling, thinking=where)
        if _writes(render, tried, thoughtful, THOUGHT, ANSWER):
            spelling = tried
            break
    if "arguments" in source:
        calling = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
        in_text = replace(spelling, text_arguments=True)
        if not _writes(render, spelling, calling, _VALUE) and _writes(
            render, in_text, calling, _VALUE
        ):
            spelling = in_text
    return spelling


def _thinking_places(source: str) -> list[Where]:
    places: list[Where] = [
        key for key in ("reasoning_content", "thinking", "reasoning")
        if re.search(rf"\b{key}\b", source)
    ]  # fmt: skip
    if "thinking" in places:
        places.append("part")
    if "think>" in source:
        places.append("content")
    return places


def _writes(
    render: Callable[[Messages], str], spelling: Spelling, message: dict[str, Any], *words: str
) -> bool:
    """Tell whether a template writes these words, and not as Python prints the object that holds them."""
    try:
        text = render(spelling.apply([_ASKED, message]))
    except DataError:
        return False
    printed = ("'type': '", f"'{_KEY}': '", f'{{\\"{_KEY}\\"')
    return all(word in text for word in words) and not any(form in text for form in printed)


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if not isinstance(function.get("arguments"), str):
        function["arguments"] = json.dumps(function.get("arguments"), ensure_ascii=False)
    return {**call, "function": function}
