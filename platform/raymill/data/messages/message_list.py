"""Many ways to spell a list of messages, turned into one: objects with `role` and `content`.

What the messages hold is checked in `message.py`; here only who speaks, and where the words stand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from raymill.data.messages.keys import is_empty
from raymill.data.messages.problems import Refused

__all__ = [
    "SYSTEM_COLUMNS",
    "Message",
    "as_messages",
    "asked_messages",
    "history_messages",
    "human_turns",
    "kind_of",
    "parsed",
    "role_named",
    "with_system",
]  # fmt: skip

Message = Mapping[str, Any]

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
CALLING = ("function_call", "tool_call")  # speakers whose words are a call of tools, as JSON
_ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
    **dict.fromkeys(CALLING, "assistant"),
}
# NeMo's names for them, beside `from` alone.
_SPEAKERS = {**_ROLES, "User": "user", "Assistant": "assistant", "System": "system"}

# An object that holds a question and its answer.
_ASKING = {"human": "user", "user": "user", "input": "user", "tool": "tool"}
_ANSWERING = ("assistant", "gpt", "bot", "output")

_HUMAN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_HUMAN_ROLES = {"Human": "user", "Assistant": "assistant"}
_EXTRA_ID = re.compile(r"\n<extra_id_1>(User|Assistant)\n")


def kind_of(value: object) -> str:
    """A value's type in the words of JSON."""
    if value is None:
        return "null"
    names = {str: "text", bool: "a boolean", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def parsed(value: object, where: str) -> object:
    """A value, from JSON where it is text.

    Raises:
        Refused: the text isn't JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Refused("type", f"{where} is text that isn't JSON ({error})") from error


def role_named(name: object) -> str | None:
    """Return which role a speaker has, or None for an unknown one."""
    return _SPEAKERS.get(name) if isinstance(name, str) else None


def as_messages(value: object, column: str) -> list[Message]:
    """A list of messages, each with `role` and `content`, and with all its other keys.

    Also read are `from` and `value` in their place, objects with a question and an answer, a list of texts
    in turns of user and assistant, and calls of tools as turns of their own, which become part of the
    assistant's.

    Raises:
        Refused: it isn't a list of these, or a speaker isn't known.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise Refused(
            "type", f"column {column!r} holds {kind_of(value)}, expected a list of messages"
        )
    if column == "conversations" and value and all(isinstance(item, str) for item in value):
        return [
            {"role": ("user", "assistant")[number % 2], "content": text}
            for number, text in enumerate(value)
        ]
    messages: list[Message] = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, Mapping):
            raise Refused(
                "type", f"{column}: message {number} is {kind_of(item)}, expected an object"
            )
        if _speaker(item) in CALLING:
            _add_call(messages, _spelled(item, number), f"{column}: message {number}")
        else:
            messages += _question_and_answer(item) or [_spelled(item, number)]
    return messages


def asked_messages(text: str) -> list[Message]:
    """A prompt as text: the user's message, or the turns of a dialogue that it spells.

    Such a dialogue is Anthropic's `Human: …`, `Assistant:` that ends where the assistant speaks, or NeMo's
    turns after `<extra_id_1>User` and `<extra_id_1>Assistant`, of which the first has no name.
    """
    if text.lstrip().startswith("Human:") and text.rstrip().endswith("\n\nAssistant:"):
        return human_turns(text, "prompt")[:-1]
    first, *others = _EXTRA_ID.split(text)
    pairs = zip(others[::2], others[1::2], strict=True)
    return [
        {"role": "user", "content": first},
        *({"role": _SPEAKERS[who], "content": said} for who, said in pairs),
    ]


def human_turns(text: object, name: str) -> list[Message]:
    """The messages of a text in which turns begin with a blank line and `Human:` or `Assistant:`.

    Raises:
        Refused: it isn't such a text.
    """
    if not isinstance(text, str):
        raise Refused("type", f"column {name!r} holds {kind_of(text)}, expected text")
    before, *turns = _HUMAN.split(text)
    if before.strip() or not turns:
        raise Refused(
            "format",
            f"{name}: expected text that begins with 'Human:', found {text.strip()[:40]!r}",
        )
    return [
        {"role": _HUMAN_ROLES[who], "content": said.strip()}
        for who, said in zip(turns[::2], turns[1::2], strict=True)
    ]


def history_messages(record: Message, *, beside_text: bool) -> list[Message]:
    """Earlier turns in the column `history`: pairs of question and answer, or messages; also as JSON text.

    `beside_text`: what is asked is text, so that the history belongs before it.

    Raises:
        Refused: it is something else, or stands beside a whole conversation.
    """
    value = record.get("history")
    if is_empty(value):
        return []
    if not beside_text:
        raise Refused(
            "unread",
            "column 'history' stands beside a list of messages, which holds the earlier turns itself; put "
            "them there, or remove it",
        )
    value = parsed(value, "history")
    if not isinstance(value, list):
        raise Refused("type", f"history is {kind_of(value)}, expected a list of earlier turns")
    messages: list[Message] = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, list):
            return [*messages, *as_messages(value[number - 1 :], "history")]
        if len(item) != 2 or not all(isinstance(text, str) for text in item):
            raise Refused("type", f"history: turn {number} isn't a question and an answer")
        messages += [
            {"role": "user", "content": item[0]},
            {"role": "assistant", "content": item[1]},
        ]
    return messages


def with_system(record: Message, messages: Sequence[Message]) -> list[Message]:
    """Messages with a system column's text as the first; many data sets write "" where there is none.

    Raises:
        Refused: the column isn't text, or says something else than another or the messages.
    """
    texts: dict[str, str] = {}
    for column in SYSTEM_COLUMNS:
        value = record.get(column)
        if value is not None and not isinstance(value, str):
            raise Refused("type", f"{column} is {kind_of(value)}, expected text")
        if value is not None and value.strip():
            texts.setdefault(value.strip(), column)
    if not texts:
        return list(messages)
    column, *others = texts.values()
    if others:
        raise Refused("order", f"columns {column!r} and {others[0]!r} differ, expected one of them")
    first = messages[0] if messages else {}
    if first.get("role") != "system":
        return [{"role": "system", "content": record[column]}, *messages]
    if str(first.get("content")).strip() not in texts:
        raise Refused(
            "order", f"column {column!r} and message 1 are both the system's, expected one"
        )
    return list(messages)


def _spelled(item: Message, number: int) -> Message:
    """With `role` and `content`, whatever these were called."""
    speaker, role = item.get("from"), item.get("role")
    if speaker is not None:
        if role_named(speaker) is None:
            known = ", ".join(_SPEAKERS)
            raise Refused("role", f"turn {number}: 'from' is {speaker!r}, expected one of {known}")
        if role is not None and _role(role) != role_named(speaker):
            raise Refused("role", f"turn {number}: 'from' is {speaker!r}, but 'role' is {role!r}")
    content, value = item.get("content"), item.get("value")
    if content is not None and value is not None and content != value:
        raise Refused("type", f"turn {number}: 'content' and 'value' differ, expected one of them")
    message = {key: held for key, held in item.items() if key not in ("from", "value")}
    words = value if content is None else content
    name = _speaker(item)
    if name in CALLING:
        calls = parsed(words, f"message {number}: {name}")
        return {**message, "role": "assistant", "content": None,
                "tool_calls": calls if isinstance(calls, list) else [calls]}  # fmt: skip
    return {
        **message,
        "role": _role(name) if speaker is None else role_named(name),
        "content": words,
    }


def _speaker(item: Message) -> object:
    return item.get("role") if item.get("from") is None else item["from"]


def _role(name: object) -> object:
    return _ROLES.get(name, name) if isinstance(name, str) else name


def _question_and_answer(item: Message) -> list[Message]:
    """An object that holds both as two messages; other objects: none. What else it holds is the answer's."""
    if "role" in item or "from" in item:
        return []
    asking = [key for key in _ASKING if item.get(key) is not None]
    answering = [key for key in _ANSWERING if item.get(key) is not None]
    if len(asking) != 1 or len(answering) != 1:
        return []
    rest = {key: value for key, value in item.items() if key not in (*asking, *answering)}
    return [
        {"role": _ASKING[asking[0]], "content": item[asking[0]]},
        {**rest, "role": "assistant", "content": item[answering[0]]},
    ]


def _add_call(messages: list[Message], call: Message, where: str) -> None:
    """Add a turn that calls tools; right after the assistant's words, or after another, it is one turn."""
    before = messages[-1] if messages else {}
    earlier = before.get("tool_calls", [])
    if before.get("role") != "assistant" or not isinstance(earlier, list):
        messages.append(call)
        return
    for key, value in call.items():
        own = key in ("role", "content", "tool_calls")
        if not own and value is not None and before.get(key) != value:
            raise Refused("order", f"{where}: {key!r} differs within one turn of the assistant")
    messages[-1] = {**before, "tool_calls": [*earlier, *call["tool_calls"]]}
