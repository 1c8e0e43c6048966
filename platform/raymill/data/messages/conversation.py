"""Conversations, read from any known format and checked once, so that later code can rely on them.

Every record becomes a `Conversation`, or a `Problem` that names what was expected, what was found, and in which
message (counted from 1). Nothing is repaired silently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raymill.data.messages.formats import (
    FORMATS,
    detect_format,
    extract_conversation,
    unread_columns,
)
from raymill.data.messages.keys import COLUMN, JsonObject, Record, UnusedKeys, refuse_altering
from raymill.data.messages.message import ROLES, check_json, check_text, checked_message
from raymill.data.messages.message_list import Message, json_type, parse_json
from raymill.data.messages.problems import CAUSES, Problem, Refused
from raymill.errors import DataError

__all__ = [
    "CAUSES", "FORMATS", "ROLES", "Conversation", "Problem", "check_json", "check_text",
    "checked_messages", "checked_tools", "detect_format", "drop_undefined_arguments", "read_conversation",
]  # fmt: skip

LEAST_WEIGHT = 1e-6  # losses are computed in 32 bits

# JSON that was written from a table has in each object the keys of all others, as nulls. In tools and
# calls of them, such nulls are recognized by the tools' schemas and dropped. These keys may be null.
_VALUES = ("default", "const", "enum", "example", "examples")

# Role → the roles that may follow it; None is the beginning.
_FOLLOWS = {
    None: ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


@dataclass(frozen=True)
class Conversation:
    """Checked messages that end with an assistant's turn.

    A message has `role` and `content` (text, "" only with tool calls). It may have `reasoning_content` (the
    assistant's thinking), `tool_calls` ([{"type": "function", "function": {"name", "arguments"}}]), `name`,
    `tool_call_id`, and `weight` 0 if it is an assistant's turn that isn't learned.

    `tools` are what the assistant may call, as JSON schemas; `weight` is that of the conversation's loss,
    above 0; the first `prompt_length` messages are a prompt, from which nothing is learned; `unused` names the
    record's keys that nothing reads.
    """

    messages: tuple[JsonObject, ...]
    tools: tuple[JsonObject, ...] | None = None
    weight: float = 1.0
    prompt_length: int = 0
    unused: tuple[str, ...] = field(default=(), compare=False)

    @property
    def first_user(self) -> str:
        """The text of the first user message, or of the first message: its conversations stay in one split."""
        for message in self.messages:
            if message["role"] == "user":
                return str(message["content"])
        return str(self.messages[0]["content"]) if self.messages else ""


def read_conversation(record: Any, format: str | None = None) -> Conversation | Problem:
    """Return a record as a conversation, or why it can't be used; `format` is one of FORMATS, or detected.

    Keys that no format knows are refused if they would change what is learned; others are listed as `unused`.

    Raises:
        DataError: no such format.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f"{format!r} isn't a chat format; expected one of {', '.join(FORMATS)}.")
    try:
        # JSON Lines may hold any JSON value, so a record may be no object.
        if not isinstance(record, Mapping):
            raise Refused("type", f"expected an object, found {json_type(record)}")
        detected = format or detect_format(record)
        if detected is None:
            columns = ", ".join(sorted(map(str, record))[:8]) or "none"
            raise Refused("format", f"none of the formats {', '.join(FORMATS)} (has {columns})")
        # Refusing comes first: an unread key that changes what is learned matters more than the
        # messages.
        refuse_altering(record, "column", "record")
        raw, unused = extract_conversation(record, detected), UnusedKeys()
        messages = checked_messages(raw.messages, unused=unused)
        _check_learned(messages, raw.prompt_length)
        unused.note(unread_columns(record, raw.read, messages), (), COLUMN)
        tools, weight = checked_tools(record.get("tools")), _weight(record.get("weight"))
        messages = drop_undefined_arguments(messages, tools)
        return Conversation(messages, tools, weight, raw.prompt_length, unused.names)
    except Refused as refused:
        return refused.problem


def checked_messages(
    raw: Sequence[Message], last: Sequence[str] = ("assistant",), unused: UnusedKeys | None = None
) -> tuple[JsonObject, ...]:
    """Check messages and return them in the form of `Conversation`; `unused` notes the keys that aren't read.

    `last` are the roles that the last message may have.

    Raises:
        Refused: names the message and the problem.
    """
    # Callers that don't report unused keys still get the checks.
    unused = unused or UnusedKeys()
    messages = tuple(
        checked_message(item, f"message {number}", unused) for number, item in enumerate(raw, 1)
    )
    _check_order([message["role"] for message in messages], last)
    return _in_order_of_calls(messages)


def checked_tools(value: object) -> tuple[JsonObject, ...] | None:
    """Check tools: a list of objects, in which the list or the objects may be JSON text.

    Many data sets write them as text, since a column of a table has only one type.

    Raises:
        Refused: the value is something else.
    """
    value = parse_json(value, "tools")
    # An empty list of tools means that there are none, as templates treat it.
    if value is None or value == []:
        return None
    if isinstance(value, list):
        value = [parse_json(tool, "tools") for tool in value]
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Refused("type", f"tools is {json_type(value)}, expected a list of objects")
    check_json(value, "tools")
    return tuple(drop_null_keys(tool) for tool in value)


def _in_order_of_calls(messages: Sequence[JsonObject]) -> tuple[JsonObject, ...]:
    """Return messages with tools' results in the order of their calls, if each call has exactly one result.

    Most templates don't write the id of a result's call, so the order alone tells which call it belongs to.
    """
    ordered = list(messages)
    for number, message in enumerate(messages, 1):
        ids = [call.get("id") for call in message.get("tool_calls", ())]
        behind = messages[number : number + len(ids)]
        answers = {one.get("tool_call_id"): one for one in behind if one["role"] == "tool"}
        # Without ids, or with missing or additional results, the order of the record is kept.
        if None not in ids and len(answers) == len(ids) and answers.keys() == set(ids):
            ordered[number : number + len(ids)] = [answers[id_] for id_ in ids]
    return tuple(ordered)


def _check_learned(messages: Sequence[Record], prompt_length: int) -> None:
    """Refuse messages if all of the assistant's turns have weight 0."""
    turns = [message for message in messages[prompt_length:] if message["role"] == "assistant"]
    if turns and all(message.get("weight") == 0 for message in turns):
        raise Refused(
            "no_assistant",
            "all of the assistant's turns have weight 0, or an equivalent train, loss or mask; give one "
            "another weight, or leave the record out",
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
        raise Refused("no_assistant", f"none of {len(roles)} messages is the assistant's to learn")
    before = None
    for number, role in enumerate(roles, 1):
        # A system message is only allowed first, and doesn't change which role may follow.
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
        raise Refused("order", f"message {len(roles)}: ends with {what} that isn't answered")
    raise Refused(
        "order", f"message {len(roles)}: ends with the {roles[-1]}, expected {' or '.join(last)}"
    )


def drop_null_keys(schema: Any, *, named: bool = False) -> Any:
    """Return a tool, or a part of its schema, without null keys, which no schema has.

    With `named`, the keys are names of the tool's own, such as those of its arguments.
    """
    if isinstance(schema, list):
        return [drop_null_keys(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: item
        if key in _VALUES and not named
        else drop_null_keys(item, named=key == "properties" and not named)
        for key, item in schema.items()
        if item is not None or (key in _VALUES and not named)
    }


def drop_undefined_arguments(
    messages: Sequence[JsonObject], tools: Sequence[Record] | None
) -> tuple[JsonObject, ...]:
    """Return messages whose calls hold no nulls for arguments that the called tool doesn't define."""
    functions = [tool.get("function", tool) for tool in tools or ()]
    # Tools have OpenAI's nested form, or the flat one.
    schemas = {
        str(function.get("name")): function.get("parameters")
        for function in functions
        if isinstance(function, Mapping)
    }
    return tuple(
        {**message, "tool_calls": [_called(call, schemas) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    )


def _called(call: Record, schemas: Mapping[str, object]) -> JsonObject:
    function = call["function"]
    arguments = _argument(function["arguments"], schemas.get(function["name"]))
    return {**call, "function": {**function, "arguments": arguments}}


def _argument(value: Any, schema: object) -> Any:
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, list):
        return [_argument(item, schema.get("items")) for item in value]
    # An object that allows additional properties may hold any key, so its nulls are kept.
    known = schema.get("properties")
    if (
        not isinstance(value, Mapping)
        or not isinstance(known, Mapping)
        or schema.get("additionalProperties")
    ):
        return value
    return {
        key: _argument(item, known.get(key))
        for key, item in value.items()
        if item is not None or key in known
    }
