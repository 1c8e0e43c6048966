"""One conversation, read from any known format and checked, so that what follows needn't.

Every record becomes a `Conversation` or a `Problem` that says what was expected and found, and in
which message (counted from 1); nothing is repaired silently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raymill.data.messages.formats import FORMATS, beside, detect_format, stated
from raymill.data.messages.keys import COLUMN, UnusedKeys, refuse_altering
from raymill.data.messages.message import ROLES, check_json, check_text, checked_message
from raymill.data.messages.message_list import Message, kind_of, parsed
from raymill.data.messages.padding import as_defined, without_padding
from raymill.data.messages.problems import CAUSES, Problem, Refused
from raymill.errors import DataError

__all__ = [
    "CAUSES", "FORMATS", "ROLES", "Conversation", "Problem", "check_json", "check_text",
    "checked_messages", "checked_tools", "detect_format", "read_conversation",
]  # fmt: skip

LEAST_WEIGHT = 1e-6  # losses are computed in 32 bits

# Who may follow whom; None stands for the beginning.
_FOLLOWS = {
    None: ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


@dataclass(frozen=True)
class Conversation:
    """Checked messages: `role` and `content` (text, "" only beside tool calls), and where given
    `reasoning_content` (what the assistant thought before it), `tool_calls` ([{"type": "function",
    "function": {"name", "arguments"}}]), `name`, `tool_call_id`, and `weight` 0 of an assistant's turn that
    isn't learned.

    It ends with an assistant's turn. `tools`: what the assistant may call, as JSON schemas;
    `weight`: of the conversation's loss, above 0; `given`: how many messages at the beginning are a
    prompt, from which nothing is learned whoever wrote them; `unused`: the names of what the record
    held beside, and nobody read.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] | None = None
    weight: float = 1.0
    given: int = 0
    unused: tuple[str, ...] = field(default=(), compare=False)

    @property
    def first_user(self) -> str:
        """The first user message's text, or the first message's: groups what must not be split."""
        for message in self.messages:
            if message["role"] == "user":
                return str(message["content"])
        return str(self.messages[0]["content"]) if self.messages else ""


def read_conversation(record: Any, format: str | None = None) -> Conversation | Problem:
    """A record as a conversation, or what is wrong with it. `format`: one of FORMATS, or detected.

    Keys that would change what is learned, and that no format knows, are refused; others are `unused`.

    Raises:
        DataError: no such format.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f"{format!r} isn't a chat format; expected one of {', '.join(FORMATS)}.")
    try:
        if not isinstance(record, Mapping):
            raise Refused("type", f"expected an object, found {kind_of(record)}")
        found = format or detect_format(record)
        if found is None:
            columns = ", ".join(sorted(map(str, record))[:8]) or "none"
            raise Refused("format", f"none of the formats {', '.join(FORMATS)} (has {columns})")
        refuse_altering(record, "column", "record")
        said, unused = stated(record, found), UnusedKeys()
        messages = checked_messages(said.messages, unused=unused)
        _check_learned(messages, said.given)
        unused.note(beside(record, said.read, messages), (), COLUMN)
        tools, weight = checked_tools(record.get("tools")), _weight(record.get("weight"))
        messages = as_defined(messages, tools)
        return Conversation(messages, tools, weight, said.given, unused.names)
    except Refused as refused:
        return refused.problem


def checked_messages(
    raw: Sequence[Message], last: Sequence[str] = ("assistant",), unused: UnusedKeys | None = None
) -> tuple[dict[str, Any], ...]:
    """Messages as a `Conversation` holds them. `last`: who may speak last, the assistant or others;
    `unused`: notes the keys that aren't read.

    Raises:
        Refused: what is wrong with which of them.
    """
    unused = unused or UnusedKeys()
    messages = tuple(
        checked_message(item, f"message {number}", unused) for number, item in enumerate(raw, 1)
    )
    _check_order([message["role"] for message in messages], last)
    return _in_order_of_calls(messages)


def checked_tools(value: object) -> tuple[dict[str, Any], ...] | None:
    """A list of objects; it or they also as JSON text, which columns of one type force on many data sets.

    Raises:
        Refused: it is something else.
    """
    value = parsed(value, "tools")
    if value is None or value == []:
        return None
    if isinstance(value, list):
        value = [parsed(tool, "tools") for tool in value]
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Refused("type", f"tools is {kind_of(value)}, expected a list of objects")
    check_json(value, "tools")
    return tuple(without_padding(tool) for tool in value)


def _in_order_of_calls(messages: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Messages in which tools' results stand as the calls that they name do, if they answer each of them once.

    Most templates don't write what a result answers, so that it is told by its place alone.
    """
    ordered = list(messages)
    for number, message in enumerate(messages, 1):
        ids = [call.get("id") for call in message.get("tool_calls", ())]
        behind = messages[number : number + len(ids)]
        answers = {one.get("tool_call_id"): one for one in behind if one["role"] == "tool"}
        if None not in ids and len(answers) == len(ids) and answers.keys() == set(ids):
            ordered[number : number + len(ids)] = [answers[one] for one in ids]
    return tuple(ordered)


def _check_learned(messages: Sequence[Mapping[str, Any]], given: int) -> None:
    """Refuse messages of which no assistant's turn is left to learn."""
    spoken = [message for message in messages[given:] if message["role"] == "assistant"]
    if spoken and all(message.get("weight") == 0 for message in spoken):
        raise Refused(
            "no_assistant",
            "all of the assistant's turns have weight 0, or a train, loss or mask that says so; give one "
            "another, or leave the record out",
        )


def _weight(value: object) -> float:
    if value is None:
        return 1.0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        weight = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        weight = math.inf
    if not number or not LEAST_WEIGHT <= weight <= 1 / LEAST_WEIGHT:
        raise Refused("type", f"weight is {value!r}, expected a number from 1e-6 to 1e6")
    return weight


def _check_order(roles: list[str], last: Sequence[str]) -> None:
    if not roles:
        raise Refused("empty", "there are no messages")
    if "assistant" in last and "assistant" not in roles:
        raise Refused("no_assistant", f"no assistant among {len(roles)} messages: nothing to learn")
    before = None
    for number, role in enumerate(roles, 1):
        if role == "system" and number == 1:
            continue
        allowed = _FOLLOWS[before]
        if role not in allowed:
            after = f"after the {before}" if before else "at the beginning"
            raise Refused(
                "order", f"message {number}: {role} {after}, expected {' or '.join(allowed)}"
            )
        before = role
    if before in last:
        return
    if "assistant" in last:
        what = "a user turn" if before == "user" else "a tool's result"
        raise Refused("order", f"message {len(roles)}: ends with {what} that nobody answers")
    raise Refused(
        "order", f"message {len(roles)}: ends with the {roles[-1]}, expected {' or '.join(last)}"
    )
