"""The check that a rendering holds everything that it was given: templates drop what they don't know.

Each piece is looked for as it is or as JSON and Python spell it, and counts once, so that a
number in a thought doesn't stand for the answer. Space around a piece may be gone: templates strip it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymill.data.messages.guard import BREAK
from raymill.data.messages.thinking import MARK, without_thinking

# Stands where a piece was found: a noncharacter, which is in no piece.
_TAKEN = "\ufdef"


def unwritten(message: Mapping[str, Any], text: str) -> str | None:
    """A name for the first thing in a message that a text doesn't hold, or None."""
    pieces = [
        *_parts("the thinking", message.get("reasoning_content")),
        *_parts("the content", message.get("content")),
    ]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        what = f"the call of {function['name']!r}".replace(BREAK, "")
        pieces.append((what, function["name"]))
        pieces += [(what, leaf) for leaf in _leaves(function["arguments"])]
    # The longest first: a short one is often found inside a longer one's place.
    for what, piece in sorted(pieces, key=lambda pair: -len(_forms(pair[1])[0])):
        found = next((form for form in _forms(piece) if form in text), None)
        if found is None:
            return what
        text = text.replace(found, _TAKEN, 1)
    return None


def ungiven(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, text: str
) -> str | None:
    """A name for the first thing that was said before a turn, or for a tool, that a text doesn't hold, or
    None. Users' words aren't looked for, and what was thought may be gone by then."""
    for number, message in enumerate(without_thinking(messages), 1):
        role = message.get("role")
        if role == "user":
            continue
        missing = unwritten(message, text)
        if missing is not None:
            named = {"system": "the system message", "tool": "a tool's result"}
            return f"{named.get(str(role), missing)} (message {number})"
    for tool in tools or ():
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and not any(form in text for form in _forms(name)):
            return f"the tool {name!r}".replace(BREAK, "")
    return None


def _parts(what: str, value: object) -> list[tuple[str, object]]:
    """The parts of a text between the marks of thoughts, which templates take apart and rewrite."""
    if not isinstance(value, str):
        return []
    *earlier, last = (part.strip() for part in MARK.split(value)[::2])
    named = [*(("the text before </think>", part) for part in earlier), (what, last)]
    return [(name, part) for name, part in named if part]


def _leaves(value: object) -> Iterator[object]:
    """Keys and values within arguments; those without characters of their own are left out."""
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


def _forms(value: object) -> tuple[str, ...]:
    """The ways in which templates write a value."""
    if not isinstance(value, str):
        return json.dumps(value), str(value)
    forms = [value, json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]]
    if BREAK not in value:  # which would become text
        forms.append(json.dumps(value)[1:-1])
    return tuple(dict.fromkeys(forms))
