"""An assistant's thoughts before its answer, wherever they stand: in a field of its own, or at the
beginning of its content, before `</think>`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from raymill.data.messages.problems import Refused

Thinking = Literal["learn", "mask", "drop"]

MARK = re.compile("(</?think>)")
_OPENED = re.compile(r"<think>\s*\Z")


def thought_in(message: Mapping[str, Any]) -> str:
    """An assistant's thinking without the space around it; "" if it has none."""
    field = message.get("reasoning_content")
    if isinstance(field, str) and field.strip():
        return field.strip()
    return _taken_apart(message.get("content"))[0]


def check_thought(message: Mapping[str, Any], number: int) -> None:
    """Refuse an assistant's message of which a thought can't be told apart: with marks of another than the
    one before its answer. `number` counts messages from 1.

    Raises:
        Refused: of the cause `order`.
    """
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return
    marks = MARK.findall(content)
    alone = not message.get("reasoning_content")
    before = content.lstrip().startswith("<think>") if len(marks) > 1 else alone
    if marks and not (alone and before and marks in (["</think>"], ["<think>", "</think>"])):
        raise Refused(
            "order",
            f"message {number}: what was thought can't be told from the answer by its marks, "
            f"{', '.join(marks[:4])}; expected one thought before the answer, as reasoning_content or between "
            "<think> and </think>; change the message, or set data.thinking=learn",
        )


def without_thinking(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages in which the assistant only answers."""
    return [_without(message) for message in messages]


def opened_thought(prompt: str) -> str:
    """The mark, with the space after it, by which a prompt for the assistant begins a thought; or ""."""
    found = _OPENED.search(prompt)
    return found[0] if found else ""


def _without(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if key != "reasoning_content"}
    if message.get("role") == "assistant":
        kept["content"] = _taken_apart(message.get("content"))[1]
    return kept


def _taken_apart(content: object) -> tuple[str, Any]:
    """(thought, answer) of a content. The opening mark may be missing: some models' prompts end with it."""
    if not isinstance(content, str):
        return "", content
    head, mark, answer = content.partition("</think>")
    head = head.strip().removeprefix("<think>").strip()
    if not mark or "<think>" in head:
        return "", content
    return head, answer.lstrip()
