"""Check one message: its text, thinking and tool calls, and whether it is learned."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from raymill.data.messages.keys import THINKING, JsonObject, UnusedKeys, is_empty, refuse_altering
from raymill.data.messages.message_list import Message, json_type, parse_json
from raymill.data.messages.problems import Refused

__all__ = ["ROLES", "THOUGHT", "check_json", "check_text", "checked_message"]

ROLES = ("system", "user", "assistant", "tool")
THOUGHT = THINKING[0]  # the key of a checked message's thinking
NESTING = 64  # levels of lists and objects within tools and arguments

# Keys that decide whether a turn is learned → whether 1 or true means that it is.
_LEARNED = {
    "weight": True,
    "loss_weight": True,
    "loss_scale": True,
    "loss_mask": True,
    "loss": True,
    "train": True,
    "training": True,
    "mask": False,
    "masked": False,
}
_READ = {
    "role", "content", "tool_calls", "function_call", "name", "tool_call_id", *THINKING, *_LEARNED,
}  # fmt: skip
_CALL_READ = {"id", "type", "function", "name", "arguments"}
# Noncharacters (U+FDD0 to U+FDEF) mark the assistant's text inside a rendering; see guard.py.
_UNUSABLE = re.compile("[\ud800-\udfff\ufdd0-\ufdef]")


def checked_message(raw: Message, where: str, unused: UnusedKeys) -> JsonObject:
    """Check a message and return it in the form of `Conversation`; `unused` notes the keys that aren't read.

    Raises:
        Refused: names the problem and `where` the message is.
    """
    role = raw.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Refused("role", f"{where}: the role is {role!r}, expected one of {', '.join(ROLES)}")
    # Keys that would change what is learned are refused before anything else is read.
    refuse_altering(raw, f"{where}:", "message")
    unused.note(raw, _READ, "message key")
    message: JsonObject = {"role": role}
    content, thoughts, calls = _content(raw.get("content"), where, unused)
    tool_calls = _tool_calls(raw, calls, where, unused)
    if content is None and not tool_calls:
        raise Refused("empty", f"{where}: the content is missing")
    message["content"] = content or ""
    check_text(message["content"], f"{where}: content")
    if not message["content"].strip() and not tool_calls:
        raise Refused("empty", f"{where}: the {role}'s content is empty")
    thought = _thought(raw, thoughts, where)
    if thought:
        message[THOUGHT] = thought
    if tool_calls:
        message["tool_calls"] = tool_calls
    # Other roles are never learned, so only the assistant's turns carry a weight.
    if not _is_learned(raw, where) and role == "assistant":
        message["weight"] = 0
    for key in ("name", "tool_call_id"):
        value = raw.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            raise Refused("type", f"{where}: {key} is {json_type(value)}, expected text")
        check_text(value, f"{where}: {key}")
        message[key] = value
    return message


def _is_learned(raw: Message, where: str) -> bool:
    """Tell whether a turn may be learned: no key excludes it.

    Raises:
        Refused: a key is neither 0, 1, false nor true, two keys contradict each other, or one marks another
        role's turn as learned.
    """
    stated: dict[str, bool] = {}
    for key, meaning in _LEARNED.items():
        value = raw.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise Refused(
                "type",
                f"{where}: {key} is {value!r}, expected 0 or 1, false or true: a turn is learned whole or "
                "not at all (a conversation's own weight may be any number above 0)",
            )
        stated[key] = bool(value) is meaning
    if len(set(stated.values())) > 1:
        raise Refused("type", f"{where}: {' and '.join(stated)} contradict each other")
    if raw["role"] != "assistant" and any(stated.values()):
        raise Refused(
            "unread",
            f"{where}: {next(iter(stated))} marks the {raw['role']}'s turn as learned, but only the "
            "assistant's are; remove it, or set it to the opposite",
        )
    return all(stated.values())


def _content(
    value: object, where: str, unused: UnusedKeys
) -> tuple[str | None, list[str], list[object]]:
    """Return a content's joined text, the thinking before it, and the tool calls after it."""
    if value is None or isinstance(value, str):
        return value, [], []
    if not isinstance(value, list):
        raise Refused("type", f"{where}: content is {json_type(value)}, expected text")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[object] = []
    for number, part in enumerate(value, 1):
        here = f"{where}: content part {number}"
        kind = part.get("type") if isinstance(part, Mapping) else json_type(part)
        text = _part_text(part, kind) if isinstance(part, Mapping) else None
        if kind not in ("text", "tool_call", *THINKING) or not isinstance(text, str):
            raise Refused("type", f"{here} is {kind!r}, expected type 'text' with text")
        refuse_altering(part, here, "message")
        unused.note(part, ("type", "text", "value", *THINKING), "content part key")
        # Templates write thinking, text and calls in this order, whatever the order in the record.
        if (calls and kind != "tool_call") or (texts and kind in THINKING):
            raise Refused(
                "order", f"{here} is {kind!r}, expected thinking, text and calls in this order"
            )
        if kind == "tool_call":
            calls.append(parse_json(text, here))
        else:
            (texts if kind == "text" else thoughts).append(text)
    return ("".join(texts) if texts or not calls else None), thoughts, calls


def _part_text(part: Message, kind: object) -> object:
    """Return the text of a content's part, under `text`, `value` or its kind's name, or in a list of parts."""
    keys = ("text", "value", *(THINKING if kind in THINKING else ()))
    values = [part[key] for key in keys if part.get(key) is not None]
    if len(values) != 1:
        return None
    [value] = values
    if isinstance(value, list) and kind in THINKING:
        listed = [one.get("text") if isinstance(one, Mapping) else None for one in value]
        texts = [text for text in listed if isinstance(text, str)]
        return "".join(texts) if len(texts) == len(listed) else None
    return value


def _thought(raw: Message, parts: Sequence[str], where: str) -> str | None:
    """Return the assistant's thinking, from one of its keys or from parts of the content."""
    key_of: dict[str, str] = {}  # thinking → its key
    for key in THINKING:
        value = raw.get(key)
        if is_empty(value):
            continue
        if not isinstance(value, str):
            raise Refused("type", f"{where}: {key} is {json_type(value)}, expected text")
        # The same thinking under two keys is accepted; different thinking isn't.
        key_of.setdefault(value, key)
    if not is_empty(list(parts)):
        key_of.setdefault("".join(parts), "content")
    if not key_of:
        return None
    if raw["role"] != "assistant":
        key = next(iter(key_of.values()))
        raise Refused("role", f"{where}: the {raw['role']} has {key}; only an assistant thinks")
    if len(key_of) > 1:
        raise Refused("type", f"{where}: {' and '.join(key_of.values())} hold different thinking")
    [thought] = key_of
    check_text(thought, f"{where}: {key_of[thought]}")
    return thought


def _tool_calls(
    raw: Message, parts: list[object], where: str, unused: UnusedKeys
) -> list[JsonObject]:
    """Return the calls under `tool_calls`, `function_call` (OpenAI's former key), or within the content."""
    calls, call = raw.get("tool_calls"), raw.get("function_call")
    if calls is not None and not isinstance(calls, list):
        raise Refused("type", f"{where}: tool_calls is {json_type(calls)}, expected a list")
    ways = [way for way in (calls, None if is_empty(call) else [call], parts) if way]
    if len(ways) > 1:
        raise Refused(
            "type", f"{where}: calls tools in {len(ways)} ways, expected tool_calls alone"
        )
    role = raw["role"]
    if ways and role != "assistant":
        raise Refused("role", f"{where}: the {role} has tool_calls; only an assistant calls tools")
    # At most one of the ways is left here.
    every = ways[0] if ways else []
    return [_tool_call(one, f"{where}: tool call {n}", unused) for n, one in enumerate(every, 1)]


def _tool_call(call: object, where: str, unused: UnusedKeys) -> JsonObject:
    """Return a call in OpenAI's nested form, with parsed arguments; the flat form is read too."""
    function = call.get("function") if isinstance(call, Mapping) else None
    function = call if function is None else function
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise Refused(
            "type", f"{where} is {json_type(call)}, expected an object with name, arguments"
        )
    unused.note(call, _CALL_READ, "tool call key")
    unused.note(function, _CALL_READ, "tool call key")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name.strip():
        raise Refused("type", f"{where}: the name is {name!r}, expected text")
    # OpenAI sends arguments as JSON text, which templates would quote once more. For calls without
    # arguments, some servers send null or blank text.
    blank = isinstance(arguments, str) and not arguments.strip()
    arguments = None if blank else parse_json(arguments, f"{where}: arguments")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise Refused("type", f"{where}: arguments is {json_type(arguments)}, expected an object")
    checked: JsonObject = {"type": "function"}
    # Other ids are dropped: templates write an id as text, or not at all.
    if isinstance(call.get("id"), str):
        checked["id"] = call["id"]
    checked["function"] = {"name": name, "arguments": arguments}
    check_json(checked, where)
    return checked


def check_json(value: object, where: str, level: int = 0) -> None:
    """Refuse values that JSON doesn't have, and text that `check_text` refuses.

    Raises:
        Refused: names the problem and `where` the value is.
    """
    if level > NESTING:
        raise Refused("type", f"{where}: nested deeper than {NESTING} levels")
    if isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Refused("type", f"{where}: a key is {json_type(key)}, expected text")
            check_text(key, where)
            check_json(item, where, level + 1)
    elif isinstance(value, list):
        for item in value:
            check_json(item, where, level + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise Refused("type", f"{where}: holds {value}, which isn't JSON")
    elif value is not None and not isinstance(value, bool | int | float):
        raise Refused("type", f"{where}: holds {json_type(value)}, which isn't JSON")


def check_text(text: str, where: str) -> None:
    """Refuse halves of surrogate pairs, and the noncharacters by which Raymill marks text.

    Raises:
        Refused: names the problem and `where` the text is.
    """
    match = _UNUSABLE.search(text)
    if match is None:
        return
    code = ord(match.group())
    if code < 0xE000:
        raise Refused("type", f"{where}: half of a surrogate pair, which isn't text")
    raise Refused(
        "special_text",
        f"{where}: U+{code:04X} at character {match.start() + 1}, a noncharacter that Unicode "
        "keeps for internal use, as Raymill does",
    )
