"""The layout of messages that a template reads, detected by rendering.

Raymill's messages have `content` as text, an assistant's thinking as `reasoning_content`, and the arguments
of tool calls as an object. Some templates read `thinking` or `reasoning` instead, some the content's parts,
and some expect arguments that are JSON text already. A template reads a layout if its rendering contains a
word that only this layout puts there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from raymill.data.messages.keys import JsonObject, Record
from raymill.errors import DataError

Messages = Sequence[Record]
ThinkingField = Literal["reasoning_content", "thinking", "reasoning", "part", "content"]

QUESTION, ANSWER, THOUGHT = "question-6b1f", "answer-93ce", "thought-d47a"
_ASKED = {"role": "user", "content": QUESTION}
# Words that no template contains, so that finding one in a rendering proves that it was written.
_KEY, _VALUE = "argument-2e", "value-58"
_CALL = {
    "type": "function",
    # Mistral's templates accept only ids of nine characters.
    "id": "call12345",
    "function": {"name": "f", "arguments": {_KEY: _VALUE}},
}


@dataclass(frozen=True)
class MessageLayout:
    """The layout that a template reads.

    `thinking` is the key of an assistant's thinking, or "part" for a part of the content, or "content" for the
    content itself, between <think> and </think>. With `parts`, content is a list; with `text_arguments`,
    arguments are JSON text.
    """

    thinking: ThinkingField = "reasoning_content"
    parts: bool = False
    text_arguments: bool = False

    def apply(self, messages: Messages) -> list[JsonObject]:
        """Return the messages in this layout."""
        return [self._apply(message) for message in messages]

    def _apply(self, message: Record) -> JsonObject:
        copy = dict(message)
        thinking = copy.get("reasoning_content")
        if isinstance(thinking, str) and self.thinking != "reasoning_content":
            del copy["reasoning_content"]
            self._insert_thinking(copy, thinking)
        if self.parts and isinstance(copy.get("content"), str):
            copy["content"] = [{"type": "text", "text": copy["content"]}]
        if self.text_arguments and copy.get("tool_calls"):
            copy["tool_calls"] = [_with_text_arguments(call) for call in copy["tool_calls"]]
        return copy

    def _insert_thinking(self, message: JsonObject, thinking: str) -> None:
        content = message.get("content") or ""
        if self.thinking == "content":
            message["content"] = f"<think>\n{thinking}\n</think>\n\n{content}"
        elif self.thinking == "part":
            parts = [{"type": "thinking", "thinking": thinking}]
            # A turn without text gets no text part.
            message["content"] = parts + ([{"type": "text", "text": content}] if content else [])
        else:
            message[self.thinking] = thinking


def detect_layout(source: str, render: Callable[[Messages], str]) -> MessageLayout:
    """Return the layout that a template reads; `render` takes messages as they are and raises DataError.

    A layout whose keys don't occur in the source isn't tried, so most templates are rendered once or twice.
    """
    layout = MessageLayout()
    plain = {"role": "assistant", "content": ANSWER}
    if re.search(r"\btext\b", source) and not _writes(render, layout, plain, QUESTION, ANSWER):
        # Content as text is preferred; parts are tried only if the template doesn't write text.
        in_parts = replace(layout, parts=True)
        if _writes(render, in_parts, plain, QUESTION, ANSWER):
            layout = in_parts
    thoughtful = {**plain, "reasoning_content": THOUGHT}
    for thinking in _thinking_fields(source):
        tried = replace(layout, thinking=thinking)
        if _writes(render, tried, thoughtful, THOUGHT, ANSWER):
            layout = tried
            break
    if "arguments" in source:
        calling = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
        in_text = replace(layout, text_arguments=True)
        if not _writes(render, layout, calling, _VALUE) and _writes(
            render, in_text, calling, _VALUE
        ):
            layout = in_text
    return layout


def _thinking_fields(source: str) -> list[ThinkingField]:
    fields: list[ThinkingField] = [
        key for key in ("reasoning_content", "thinking", "reasoning")
        if re.search(rf"\b{key}\b", source)
    ]  # fmt: skip
    if "thinking" in fields:
        fields.append("part")
    if "think>" in source:
        fields.append("content")
    return fields


def _writes(
    render: Callable[[Messages], str], layout: MessageLayout, message: JsonObject, *words: str
) -> bool:
    """Tell whether a template writes these words, and not as Python prints the object that holds them."""
    try:
        text = render(layout.apply([_ASKED, message]))
    except DataError:
        return False
    # A template that prints the object itself would contain the words too, but in Python's notation.
    printed = ("'type': '", f"'{_KEY}': '", f'{{\\"{_KEY}\\"')
    return all(word in text for word in words) and not any(form in text for form in printed)


def _with_text_arguments(call: Record) -> JsonObject:
    function = dict(call["function"])
    if not isinstance(function.get("arguments"), str):
        function["arguments"] = json.dumps(function.get("arguments"), ensure_ascii=False)
    return {**call, "function": function}
