"""One message, checked: text, thinking, calls of tools, and whether it is learned."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from raymill.data.messages.keys import THINKING, UnusedKeys, is_empty, refuse_altering
from raymill.data.messages.message_list import Message, kind_of, parsed
from raymill.data.messages.problems import Refused

__all__ = ["ROLES", "THOUGHT", "check_json", "check_text", "checked_message"]

ROLES = ("system", "user", "assistant", "tool")
THOUGHT = THINKING[0]  # the key of a checked message that holds what the assistant thought
NESTING = 64  # levels of lists and objects within tools and arguments

# Keys that say whether a turn is learned → what is said by 1 or true.
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
# Noncharacters (U+FDD0 to U+FDEF) mark the assistant's text inside a rendering: see template.py.
_UNUSABLE = re.compile("[\ud800-\udfff\ufdd0-\ufdef]")


def checked_message(raw: Message, where: str, unused: UnusedKeys) -> dict[str, Any]:
    """A message as `Conversation` holds it; keys that aren't read are noted as `unused`.

    Raises:
        Refused: what is wrong with it, naming `where` it stands.
    """
    role = raw.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Refused("role", f"{where}: the role is {role!r}, expected one of {', '.join(ROLES)}")
    refuse_altering(raw, f"{where}:", "message")
    unused.note(raw, _READ, "message key")
    message: dict[str, Any] = {"role": role}
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
    if not _is_learned(raw, where) and role == "assistant":
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


def _is_learned(raw: Message, where: str) -> bool:
    """Tell whether a turn may be learned: no key says that it mustn't.

    Raises:
        Refused: a key holds something else than 0, 1, false or true, two keys contradict each other, or one
        says that somebody else than the assistant is learned.
    """
    said: dict[str, bool] = {}
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
        said[key] = bool(value) is meaning
    if len(set(said.values())) > 1:
        raise Refused("type", f"{where}: {' and '.join(said)} contradict each other")
    if raw["role"] != "assistant" and any(said.values()):
        raise Refused(
            "unread",
            f"{where}: {next(iter(said))} says that the {raw['role']}'s turn is learned, but only the "
            "assistant's are; remove it, or set it to the opposite",
        )
    return all(said.values())


def _content(
    value: object, where: str, unused: UnusedKeys
) -> tuple[str | None, list[str], list[object]]:
    """Text, or text parts put together; thinking before it; calls of tools after it."""
    if value is None or isinstance(value, str):
        return value, [], []
    if not isinstance(value, list):
        raise Refused("type", f"{where}: content is {kind_of(value)}, expected text")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[object] = []
    for number, part in enumerate(value, 1):
        here = f"{where}: content part {number}"
        kind = part.get("type") if isinstance(part, Mapping) else kind_of(part)
        text = _part_text(part, kind) if isinstance(part, Mapping) else None
        if kind not in ("text", "tool_call", *THINKING) or not isinstance(text, str):
            raise Refused("type", f"{here} is {kind!r}, expected type 'text' with text")
        refuse_altering(part, here, "message")
        unused.note(part, ("type", "text", "value", *THINKING), "content part key")
        if (calls and kind != "tool_call") or (texts and kind in THINKING):
            raise Refused(
                "order", f"{here} is {kind!r}, expected thinking, text and calls in this order"
            )
        if kind == "tool_call":
            calls.append(parsed(text, here))
        else:
            (texts if kind == "text" else thoughts).append(text)
    return ("".join(texts) if texts or not calls else None), thoughts, calls


def _part_text(part: Message, kind: object) -> object:
    """Return what a content's part holds, under `text`, `value` or its kind's name, also as text parts."""
    held = [part.get(key) for key in ("text", "value", *(THINKING if kind in THINKING else ()))]
    found = [text for text in held if text is not None]
    if len(found) != 1:
        return None
    if isinstance(found[0], list) and kind in THINKING:
        texts = [one.get("text") if isinstance(one, Mapping) else None for one in found[0]]
        return (
            "".join(text for text in texts if text)
            if all(isinstance(t, str) for t in texts)
            else None
        )
    return found[0]


def _thought(raw: Message, parts: Sequence[str], where: str) -> str | None:
    """Return what the assistant thought, from whichever key or part of the content it stands in."""
    found: dict[str, str] = {}
    for key in THINKING:
        value = raw.get(key)
        if is_empty(value):
            continue
        if not isinstance(value, str):
            raise Refused("type", f"{where}: {key} is {kind_of(value)}, expected text")
        found.setdefault(value, key)
    if not is_empty(list(parts)):
        found.setdefault("".join(parts), "content")
    if not found:
        return None
    if raw["role"] != "assistant":
        key = next(iter(found.values()))
        raise Refused("role", f"{where}: the {raw['role']} has {key}; only an assistant thinks")
    if len(found) > 1:
        raise Refused("type", f"{where}: {' and '.join(found.values())} hold different thoughts")
    [thought] = found
    check_text(thought, f"{where}: {found[thought]}")
    return thought


def _tool_calls(
    raw: Message, parts: list[object], where: str, unused: UnusedKeys
) -> list[dict[str, Any]]:
    """Calls under `tool_calls`, `function_call` (OpenAI's former way), or within the content."""
    calls, call = raw.get("tool_calls"), raw.get("function_call")
    if calls is not None and not isinstance(calls, list):
        raise Refused("type", f"{where}: tool_calls is {kind_of(calls)}, expected a list")
    ways = [way for way in (calls, None if is_empty(call) else [call], parts) if way]
    if len(ways) > 1:
        raise Refused(
            "type", f"{where}: calls tools in {len(ways)} ways, expected tool_calls alone"
        )
    role = raw["role"]
    if ways and role != "assistant":
        raise Refused("role", f"{where}: the {role} has tool_calls; only an assistant calls tools")
    every = ways[0] if ways else []
    return [_tool_call(one, f"{where}: tool call {n}", unused) for n, one in enumerate(every, 1)]


def _tool_call(call: object, where: str, unused: UnusedKeys) -> dict[str, Any]:
    """OpenAI's nested or the flat form, always returned nested, arguments parsed."""
    function = call.get("function") if isinstance(call, Mapping) else None
    function = call if function is None else function
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise Refused(
            "type", f"{where} is {kind_of(call)}, expected an object with name, arguments"
        )
    unused.note(call, _CALL_READ, "tool call key")
    unused.note(function, _CALL_READ, "tool call key")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name.strip():
        raise Refused("type", f"{where}: the name is {name!r}, expected text")
    # OpenAI sends arguments as JSON text; templates print them as JSON, which would quote it twice.
    # Of calls without any, some servers send null or no text.
    blank = isinstance(arguments, str) and not arguments.strip()
    arguments = None if blank else parsed(arguments, f"{where}: arguments")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise Refused("type", f"{where}: arguments is {kind_of(arguments)}, expected an object")
    checked: dict[str, Any] = {"type": "function"}
    if isinstance(call.get("id"), str):
        checked["id"] = call["id"]
    checked["function"] = {"name": name, "arguments": arguments}
    check_json(checked, where)
    return checked


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
