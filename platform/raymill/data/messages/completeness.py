"""Check that a rendering holds all of a message: templates drop what they don't know.

Each text is searched for as it is, or as JSON and Python spell it. A match counts once, so that a number in a
thought doesn't stand for the answer. Space around a text may be missing, since templates strip it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from raymill.data.messages.guard import BREAK
from raymill.data.messages.keys import Record
from raymill.data.messages.thinking import MARK, without_thinking

# Replaces text that was matched: a noncharacter, which no message contains.
_MATCHED = "\ufdef"


def missing_from_turn(message: Record, text: str) -> str | None:
    """Return the name of the first part of a message that its rendered text lacks, or None."""
    parts = [
        *_parts("the thinking", message.get("reasoning_content")),
        *_parts("the content", message.get("content")),
    ]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        what = f"the call of {function['name']!r}".replace(BREAK, "")
        parts.append((what, function["name"]))
        parts += [(what, leaf) for leaf in _leaves(function["arguments"])]
    # The longest part is matched first: a short one often occurs inside a longer one's text.
    for what, part in sorted(parts, key=lambda pair: -len(_spellings(pair[1])[0])):
        spelling = next((spelling for spelling in _spellings(part) if spelling in text), None)
        if spelling is None:
            return what
        # The match is removed, so that another part can't match the same text.
        text = text.replace(spelling, _MATCHED, 1)
    return None


def missing_from_context(
    messages: Sequence[Record], tools: Sequence[Record] | None, text: str
) -> str | None:
    """Return the name of the first earlier message, or tool, that a rendering lacks, or None.

    Users' messages aren't searched for, and thinking may be gone: templates drop that of earlier turns.
    """
    for number, message in enumerate(without_thinking(messages), 1):
        role = message.get("role")
        if role == "user":
            continue
        missing = missing_from_turn(message, text)
        if missing is not None:
            named = {"system": "the system message", "tool": "a tool's result"}
            return f"{named.get(str(role), missing)} (message {number})"
    for tool in tools or ():
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        # Only names of tools are searched for: templates rewrite their schemas.
        if isinstance(name, str) and not any(spelling in text for spelling in _spellings(name)):
            return f"the tool {name!r}".replace(BREAK, "")
    return None


def _parts(what: str, value: object) -> list[tuple[str, object]]:
    """Split a text at the marks of thoughts, around which templates rewrite it."""
    if not isinstance(value, str):
        return []
    *earlier, last = (part.strip() for part in MARK.split(value)[::2])
    named = [*(("the text before </think>", part) for part in earlier), (what, last)]
    return [(name, part) for name, part in named if part]


def _leaves(value: object) -> Iterator[object]:
    """Yield the keys and values within arguments, without blank ones."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(key)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif value is not None:
        yield value


def _spellings(value: object) -> tuple[str, ...]:
    """Return the ways in which templates write a value."""
    if not isinstance(value, str):
        return json.dumps(value), str(value)
    spellings = [value, json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]]
    # ASCII-only JSON would spell the BREAK of a broken special token as text of its own.
    if BREAK not in value:
        spellings.append(json.dumps(value)[1:-1])
    return tuple(dict.fromkeys(spellings))
