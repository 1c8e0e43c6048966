"""One conversation, read from any known format and checked, so that what follows needn't.

Every record becomes a `Conversation` or a `Problem` that says what was expected and found, and in
which message (counted from 1); nothing is repaired silently.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymill.data.chat.formats import (
    FORMATS,
    detect_format,
    given_messages,
    kind_of,
    raw_messages,
)
from raymill.data.chat.problems import CAUSES, Problem, Refused
from raymill.errors import DataError

__all__ = [
    "CAUSES", "FORMATS", "ROLES", "Conversation", "Problem", "check_json", "check_text",
    "checked_messages", "checked_tools", "detect_format", "read_conversation",
]  # fmt: skip

ROLES = ("system", "user", "assistant", "tool")
LEAST_WEIGHT = 1e-6  # losses are computed in 32 bits
NESTING = 64  # levels of lists and objects within tools and arguments

# Who may follow whom; None stands for the beginning.
_FOLLOWS = {
    None: ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
# Noncharacters (U+FDD0 to U+FDEF) mark the assistant's text inside a rendering: see template.py.
_UNUSABLE = re.compile("[\ud800-\udfff\ufdd0-\ufdef]")


@dataclass(frozen=True)
class Conversation:
    """Checked messages: `role` and `content` (text, "" only beside tool calls), and where given
    `tool_calls` ([{"type": "function", "function": {"name", "arguments"}}]), `name`,
    `tool_call_id`, and `weight` 0 of an assistant's turn that isn't learned.

    It ends with an assistant's turn. `tools`: what the assistant may call, as JSON schemas;
    `weight`: of the conversation's loss, above 0; `given`: how many messages at the beginning are a
    prompt, from which nothing is learned whoever wrote them.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] | None = None
    weight: float = 1.0
    given: int = 0

    @property
    def first_user(self) -> str:
        """The first user message's text, or the first message's: groups what must not be split."""
        for message in self.messages:
            if message["role"] == "user":
                return str(message["content"])
        return str(self.messages[0]["content"]) if self.messages else ""


def read_conversation(record: Any, format: str | None = None) -> Conversation | Problem:
    """A record as a conversation, or what is wrong with it. `format`: one of FORMATS, or detected.

    Keys that no format knows are ignored.

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
        messages = checked_messages(raw_messages(record, found))
        tools, weight = checked_tools(record.get("tools")), _weight(record.get("weight"))
        return Conversation(messages, tools, weight, given_messages(record, found))
    except Refused as refused:
        return refused.problem


def checked_messages(
    raw: Sequence[Mapping[str, Any]], last: Sequence[str] = ("assistant",)
) -> tuple[dict[str, Any], ...]:
    """Messages as a `Conversation` holds them. `last`: who may speak last, the assistant or others.

    Raises:
        Refused: what is wrong with which of them.
    """
    messages = tuple(_message(item, f"message {n}") for n, item in enumerate(raw, 1))
    _check_order([message["role"] for message in messages], last)
    return messages


def checked_tools(value: object) -> tuple[dict[str, Any], ...] | None:
    """A list of objects, also as JSON text, which columns of one type force on many data sets.

    Raises:
        Refused: it is something else.
    """
    value = _parsed(value, "tools")
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Refused("type", f"tools is {kind_of(value)}, expected a list of objects")
    check_json(value, "tools")
    return tuple(value)


def _message(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = raw.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Refused("role", f"{where}: the role is {role!r}, expected one of {', '.join(ROLES)}")
    message: dict[str, Any] = {"role": role}
    calls = raw.get("tool_calls")
    tool_calls = [] if calls is None else _tool_calls(calls, role, where)
    content = _content(raw.get("content"), where, optional=bool(tool_calls))
    check_text(content, f"{where}: content")
    if not content.strip() and not tool_calls:
        raise Refused("empty", f"{where}: the {role}'s content is empty")
    message["content"] = content
    if tool_calls:
        message["tool_calls"] = tool_calls
    if role == "assistant" and raw.get("weight") == 0:  # OpenAI's way to leave a turn out
        message["weight"] = 0
    for key in ("name", "tool_call_id"):
        value = raw.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            raise Refused("type", f"{where}: {key} is {kind_of(value)}, expected text")
        check_text(value, f"{where}: {key}")
        message[key] = value
    return message


def _content(value: object, where: str, *, optional: bool) -> str:
    """Text, or text parts put together."""
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if value is None:
        raise Refused("empty", f"{where}: the content is missing")
    if not isinstance(value, list):
        raise Refused("type", f"{where}: content is {kind_of(value)}, expected text")
    texts = []
    for number, part in enumerate(value, 1):
        kind = part.get("type") if isinstance(part, Mapping) else kind_of(part)
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise Refused(
                "type",
                f"{where}: content part {number} is {kind!r}, expected type 'text' with text",
            )
        texts.append(text)
    return "".join(texts)


def _tool_calls(value: object, role: str, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise Refused("type", f"{where}: tool_calls is {kind_of(value)}, expected a list")
    if value and role != "assistant":
        raise Refused("role", f"{where}: the {role} has tool_calls; only an assistant calls tools")
    return [_tool_call(call, f"{where}: tool call {n}") for n, call in enumerate(value, 1)]


def _tool_call(call: object, where: str) -> dict[str, Any]:
    """OpenAI's nested or the flat form, always returned nested, arguments parsed."""
    function = call.get("function") if isinstance(call, Mapping) else None
    function = call if function is None else function
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise Refused(
            "type", f"{where} is {kind_of(call)}, expected an object with name, arguments"
        )
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name.strip():
        raise Refused("type", f"{where}: the name is {name!r}, expected text")
    # OpenAI sends arguments as JSON text; templates print them as JSON, which would quote it twice.
    arguments = _parsed(arguments, f"{where}: arguments") if arguments is not None else {}
    if not isinstance(arguments, dict):
        raise Refused("type", f"{where}: arguments is {kind_of(arguments)}, expected an object")
    checked: dict[str, Any] = {"type": "function"}
    if isinstance(call.get("id"), str):
        checked["id"] = call["id"]
    checked["function"] = {"name": name, "arguments": arguments}
    check_json(checked, where)
    return checked


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


def _parsed(value: object, where: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Refused("type", f"{where} is text that isn't JSON ({error})") from error


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


def check_json(value: object, where: str, level: int = 0) -> None:
    """Refuse what JSON doesn't have, or text that `check_text` refuses.

    Raises:
        Refused: names `where` it stands.
    """
    if level > NESTING:
        raise Refused("type", f"{where}: nested deeper than {NESTING} levels")
    if isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Refused("type", f"{where}: a key is {kind_of(key)}, expected text")
            check_text(key, where)
            check_json(item, where, level + 1)
    elif isinstance(value, list):
        for item in value:
            check_json(item, where, level + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise Refused("type", f"{where}: holds {value}, which isn't JSON")
    elif value is not None and not isinstance(value, bool | int | float):
        raise Refused("type", f"{where}: holds {kind_of(value)}, which isn't JSON")


def check_text(text: str, where: str) -> None:
    """Refuse halves of surrogate pairs, and the noncharacters that Raymill marks text with.

    Raises:
        Refused: names `where` it stands.
    """
    found = _UNUSABLE.search(text)
    if found is None:
        return
    code = ord(found.group())
    if code < 0xE000:
        raise Refused("type", f"{where}: half of a surrogate pair, which isn't text")
    raise Refused(
        "special_text",
        f"{where}: U+{code:04X} at character {found.start() + 1}, a noncharacter that Unicode "
        "keeps for internal use, as Raymill does",
    )
