"""Tool calls of an answer, parsed in the form in which its template writes them.

Known are three forms: `<tool_call>{"name": …, "arguments": …}</tool_call>` (Hermes, Qwen), `[TOOL_CALLS]`
before a list of such objects or before `name[ARGS]{…}` (Mistral), and an answer that is nothing but
`{"name": …, "parameters": …}` (Llama 3.1). A form is recognized by having the template write calls and parsing
them again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raymill.data.messages.template import ChatTemplate
from raymill.data.messages.template_probes import tool_call_probe
from raymill.errors import DataError
from raymill.generate.thoughts import overlap

_MISTRAL = "[TOOL_CALLS]"
_MISTRAL_CALL = re.compile(r"\s*(?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]\s*")
_LLAMA = "<|python_tag|>"
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class ToolCall:
    """Call of a tool; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolFormat:
    """Form of calls: text from `opens` to `closes`, or to the end of the answer.

    `leading`: an answer that begins with this, but for space, is a call too. `read` parses the text in
    between, or returns None if that isn't in this form. `marks`: text that may be special tokens.
    """

    name: str
    opens: str
    closes: str | None
    read: Callable[[str], list[ToolCall] | None]
    leading: str | None = None
    marks: tuple[str, ...] = ()


class ToolPiece(NamedTuple):
    """Piece of an answer's content, and calls that have been completed."""

    content: str = ""
    calls: tuple[ToolCall, ...] = ()


def _call_of(value: object, key: str) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
        return None
    arguments = value.get(key, {})
    if isinstance(arguments, str):
        arguments = _first_json(arguments)[0] if arguments.strip() else {}
    if not isinstance(arguments, dict):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


def _first_json(text: str) -> tuple[object, str]:
    """Return (the JSON value with which a text begins, the rest); (None, text) if it begins with none."""
    text = text.lstrip()
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None, text
    return value, text[end:].lstrip()


def _read_hermes(text: str) -> list[ToolCall] | None:
    value, rest = _first_json(text)
    call = _call_of(value, "arguments")
    return None if call is None or rest else [call]


def _read_mistral(text: str) -> list[ToolCall] | None:
    calls: list[ToolCall | None] = []
    if text.lstrip().startswith("["):
        values, rest = _first_json(text)
        calls = (
            [_call_of(value, "arguments") for value in values] if isinstance(values, list) else []
        )
    else:
        rest = text
        while match := _MISTRAL_CALL.match(rest):
            arguments, rest = _first_json(rest[match.end() :])
            calls.append(_call_of({"name": match["name"], "arguments": arguments}, "arguments"))
            rest = rest.removeprefix(_MISTRAL)
    return _all_known(calls, rest)


def _read_llama(text: str) -> list[ToolCall] | None:
    calls, rest = list[ToolCall | None](), text.strip()
    while rest:
        value, rest = _first_json(rest)
        if value is None:
            return None
        calls.append(_call_of(value, "parameters"))
        rest = rest.removeprefix(";")
    return _all_known(calls, rest)


def _all_known(calls: Sequence[ToolCall | None], rest: str) -> list[ToolCall] | None:
    known = [call for call in calls if call is not None]
    return known if known and len(known) == len(calls) and not rest.strip() else None


HERMES = ToolFormat(
    "hermes", "<tool_call>", "</tool_call>", _read_hermes, marks=("<tool_call>", "</tool_call>")
)
MISTRAL = ToolFormat(
    "mistral", _MISTRAL, None, _read_mistral, marks=(_MISTRAL, "[ARGS]", "[CALL_ID]")
)
LLAMA = ToolFormat("llama", _LLAMA, None, _read_llama, leading='{"name"', marks=(_LLAMA,))


def tool_format_of(template: ChatTemplate) -> ToolFormat | None:
    """Return the form in which a template writes calls; None if it knows no tools, or writes another form."""
    probe = tool_call_probe(1, answered=False)
    asked = probe.messages[:1]
    try:
        if template.text(asked, probe.tools) == template.text(asked):
            return None
        segments = template.segments(probe.messages, probe.tools)
    except DataError:
        return None
    turn = "".join(segment.text for segment in segments if segment.turn == 0)
    for token in template.special_tokens:
        turn = turn.rstrip().removesuffix(token)
    expected = ToolCall("f", '{"x": 1}')
    for form in (HERMES, MISTRAL, LLAMA):
        splitter = ToolSplitter(form)
        if (expected,) == (*splitter.push(turn).calls, *splitter.finish().calls):
            return form
    return None


class ToolSplitter:
    """Splits the content of an answer that comes in pieces into text and calls.

    A call is returned whole. Text that looked like a call and isn't one is returned as content; space around
    calls isn't. `form` None: all is content.
    """

    def __init__(self, form: ToolFormat | None) -> None:
        self._form = form
        self._held = ""
        # The text held back is a call that hasn't ended; `_opened` is what it began with.
        self._opened: str | None = None
        self._at_beginning = True
        self._called = False

    def push(self, text: str) -> ToolPiece:
        """Take text; return the part that has become certain."""
        if self._form is None:
            return ToolPiece(text)
        self._held += text
        pieces, calls = list[str](), list[ToolCall]()
        while True:
            if self._opened is None:
                pieces.append(self._text(self._form))
            closes = self._form.closes
            if self._opened is None or closes is None or closes not in self._held:
                return ToolPiece("".join(pieces), tuple(calls))
            inside, _, self._held = self._held.partition(closes)
            pieces.append(self._ended(self._form, inside, closes, calls))

    def finish(self) -> ToolPiece:
        """Return the text that was held back, which no other text follows."""
        held, calls = self._held, list[ToolCall]()
        self._held = ""
        if self._form is None or (self._opened is None and self._called and not held.strip()):
            return ToolPiece()
        if self._opened is not None:
            held = self._ended(self._form, held, "", calls)
        return ToolPiece(held, tuple(calls))

    def _text(self, form: ToolFormat) -> str:
        """Return the certain text before the next call."""
        text = self._held.lstrip() if self._called else self._held
        if self._at_beginning and form.leading:
            begins = "".join(text.split())[: len(form.leading)]
            if begins == form.leading:
                self._open("", text)
            if form.leading.startswith(begins):
                return ""
        before, mark, after = text.partition(form.opens)
        if mark:
            self._open(form.opens, after)
            before = before.rstrip()
        else:
            # Space is held back too: it may be that before a call.
            before = text[: len(text) - overlap(text, form.opens)].rstrip()
            self._held = text[len(before) :]
        if before:
            self._at_beginning = self._called = False
        return before

    def _open(self, mark: str, text: str) -> None:
        self._opened, self._held, self._at_beginning = mark, text, False

    def _ended(self, form: ToolFormat, inside: str, closes: str, calls: list[ToolCall]) -> str:
        """Read a call that has ended; return its text if it isn't one."""
        read = form.read(inside)
        opened, self._opened = self._opened, None
        if read is None:
            return f"{opened}{inside}{closes}"
        calls += read
        self._called = True
        return ""
