"""An assistant's thinking before its answer, in a field of its own or in its content before `</think>`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from raymill.data.messages.keys import JsonObject, Record
from raymill.data.messages.problems import Refused

Thinking = Literal["learn", "mask", "drop"]

MARK = re.compile("(</?think>)")
_OPENED = re.compile(r"<think>\s*\Z")


def thought_in(message: Record) -> str:
    """Return an assistant's thinking without the space around it, or ""."""
    field = message.get("reasoning_content")
    # A field of its own takes precedence over marks in the content.
    if isinstance(field, str) and field.strip():
        return field.strip()
    return _split_thinking(message.get("content"))[0]


def check_thought(message: Record, number: int) -> None:
    """Refuse an assistant's message whose thinking can't be separated from its answer.

    Such a message has other marks than those of one thought before the answer. `number` counts messages from 1.

    Raises:
        Refused: of the cause `order`.
    """
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return
    marks = MARK.findall(content)
    alone = not message.get("reasoning_content")
    # A single `</think>` is accepted: the opening mark may be part of the generation prompt.
    before = content.lstrip().startswith("<think>") if len(marks) > 1 else alone
    if marks and not (alone and before and marks in (["</think>"], ["<think>", "</think>"])):
        raise Refused(
            "order",
            f"message {number}: the thinking can't be separated from the answer by its marks, "
            f"{', '.join(marks[:4])}; expected one thought before the answer, as reasoning_content or between "
            "<think> and </think>; change the message, or set data.thinking=learn",
        )


def without_thinking(messages: Sequence[Record]) -> list[JsonObject]:
    """Return messages without the assistant's thinking."""
    return [_without(message) for message in messages]


def opened_thought(prompt: str) -> str:
    """Return the `<think>`, with the space after it, with which a generation prompt ends, or ""."""
    match = _OPENED.search(prompt)
    return match[0] if match else ""


def _without(message: Record) -> JsonObject:
    kept = {key: value for key, value in message.items() if key != "reasoning_content"}
    if message.get("role") == "assistant":
        kept["content"] = _split_thinking(message.get("content"))[1]
    return kept


def _split_thinking(content: object) -> tuple[str, Any]:
    """Return (thinking, answer) of a content; `<think>` may be part of the generation prompt instead."""
    if not isinstance(content, str):
        return "", content
    head, mark, answer = content.partition("</think>")
    head = head.strip().removeprefix("<think>").strip()
    # A second opening mark means that the marks aren't those of one thought.
    if not mark or "<think>" in head:
        return "", content
    return head, answer.lstrip()
