"""Four ways in which data sets write conversations down, turned into one list of messages.

- `messages`: OpenAI's and TRL's `{"messages": [{"role", "content", …}]}`;
- `sharegpt`: `{"conversations": [{"from", "value"}], "system"?}`;
- `alpaca`: `{"instruction", "input"?, "output", "system"?}`;
- `prompt_completion`: TRL's `{"prompt", "completion"}`, as text or as lists of messages.

What the messages hold is checked in `conversation.py`; here only the outer form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raymill.data.chat.problems import Refused

FORMATS = ("messages", "sharegpt", "alpaca", "prompt_completion")

COLUMNS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
}
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
}


def detect_format(record: Mapping[str, Any]) -> str | None:
    """The first of FORMATS whose columns a record has (a null counts as missing), or None."""
    for name in FORMATS:
        if all(record.get(column) is not None for column in COLUMNS[name]):
            return name
    return None


def raw_messages(record: Mapping[str, Any], format: str) -> list[Mapping[str, Any]]:
    """A record's messages with `role` and `content`, not yet checked.

    Raises:
        Refused: a column is missing, or the outer form isn't the format's.
    """
    for column in COLUMNS[format]:
        if record.get(column) is None:
            raise Refused(
                "format",
                f"expected the format {format!r}, but there is no column {column!r} "
                f"(has {', '.join(sorted(map(str, record))[:8]) or 'none'})",
            )
    return _READERS[format](record)


def given_messages(record: Mapping[str, Any], format: str) -> int:
    """How many messages at the beginning are a prompt: only `prompt_completion` says so."""
    prompt = record["prompt"] if format == "prompt_completion" else ""
    return 0 if isinstance(prompt, str) else len(prompt)


def kind_of(value: object) -> str:
    """A value's type in the words of JSON."""
    if value is None:
        return "null"
    names = {str: "text", bool: "a boolean", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _messages(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _objects(record["messages"], "messages")


def _sharegpt(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages = _system(record)
    for number, turn in enumerate(_objects(record["conversations"], "conversations"), 1):
        speaker = turn.get("from")
        if speaker is None and "role" in turn:  # sharegpt's column with OpenAI's keys is common
            messages.append(turn)
            continue
        if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
            known = ", ".join(SHAREGPT_ROLES)
            raise Refused("role", f"turn {number}: 'from' is {speaker!r}, expected one of {known}")
        messages.append({"role": SHAREGPT_ROLES[speaker], "content": turn.get("value")})
    return messages


def _alpaca(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    parts = [_text(record["instruction"], "instruction")]
    if record.get("input") is not None:
        parts.append(_text(record["input"], "input"))
    asked = "\n\n".join(parts) if len(parts) == 2 and parts[1] else parts[0]
    return [
        *_system(record),
        {"role": "user", "content": asked},
        {"role": "assistant", "content": record["output"]},
    ]


def _prompt_completion(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ]
    if isinstance(prompt, str) or isinstance(completion, str):
        raise Refused(
            "type",
            f"prompt is {kind_of(prompt)} and completion is {kind_of(completion)}; expected both "
            "as text or both as lists of messages",
        )
    return _objects(prompt, "prompt") + _objects(completion, "completion")


def _system(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A top-level system prompt; many data sets write "" where there is none."""
    text = record.get("system")
    if text is None:
        return []
    return [{"role": "system", "content": text}] if _text(text, "system").strip() else []


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise Refused("type", f"column {column!r} holds {kind_of(value)}, expected text")
    return value


def _objects(value: object, column: str) -> list[Mapping[str, Any]]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise Refused(
            "type", f"column {column!r} holds {kind_of(value)}, expected a list of messages"
        )
    for number, item in enumerate(value, 1):
        if not isinstance(item, Mapping):
            raise Refused(
                "type", f"{column}: message {number} is {kind_of(item)}, expected an object"
            )
    return list(value)


_READERS: dict[str, Callable[[Mapping[str, Any]], list[Mapping[str, Any]]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
}
