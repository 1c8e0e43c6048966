"""A chat template: messages in, text out, with the assistant's part told apart.

Two kinds of templates. Those with `{% generation %}` markers say themselves what the assistant
writes. For all others (most models' own) renderings are compared: what the messages before a turn
render to, with the prompt for the assistant, must begin what they render to with the turn; what
comes after is the assistant's, up to the last special token in it, which ends the turn.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from raymill.data.chat.budget import MAX_OUTPUT_CHARACTERS
from raymill.data.chat.chatml import CHATML
from raymill.data.chat.guard import RESERVED, SPOKEN_BEGIN, SPOKEN_END, Guard
from raymill.data.chat.sandbox import BoundedEnvironment
from raymill.errors import DataError

__all__ = ["CHATML", "ChatTemplate", "Segment"]

MAX_SOURCE_BYTES = 64 * 2**10

# What compiled templates raise: theirs, and Python's own for wrong types, missing keys, depth.
_FAILURES = (
    TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, NameError,
    RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True)
class Segment:
    """A part of a rendering. `turn`: which assistant turn spoke it (0 is the first); the template's
    own text and turns that aren't learned have none."""

    text: str
    learned: bool
    turn: int | None = None


class ChatTemplate:
    """A compiled template.

    `variables`: what it may name beside the messages (bos_token, eos_token, …). `special_tokens`:
    all of the tokenizer's, needed where there are no markers; values of variables that are named
    `…_token` count as such too.

    Raises:
        DataError: it doesn't parse, is longer than 64 KiB, or uses what isn't allowed.
    """

    def __init__(
        self, source: str, variables: Mapping[str, str], special_tokens: Sequence[str] = ()
    ) -> None:
        if len(source.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
            raise DataError(f"The chat template is longer than {MAX_SOURCE_BYTES >> 10} KiB.")
        if any(RESERVED.search(text) for text in (source, *variables.values())):
            raise DataError("The chat template contains a noncharacter (U+FDD0 to U+FDEF).")
        self.source, self.variables = source, dict(variables)
        named = [text for name, text in variables.items() if name.endswith("_token")]
        self.special_tokens = tuple(dict.fromkeys((*special_tokens, *named)))
        self._guard = Guard(self.special_tokens)
        self._environment = BoundedEnvironment()
        self._lock = threading.Lock()  # the budget is the environment's, one for all renderings
        try:
            tree = self._environment.parse_charged(source)
            self.has_markers = any(
                isinstance(block.call.node, nodes.ExtensionAttribute)
                for block in tree.find_all(nodes.CallBlock)
            )
            code = self._environment.compile(tree)
            self._template = Template.from_code(
                self._environment, code, self._environment.make_globals(None)
            )
        except _FAILURES as error:
            line = f" in line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            raise DataError(
                f"The chat template can't be read: {_sentence(error)}{line}."
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return (ChatTemplate, (self.source, self.variables, self.special_tokens))

    def with_special_tokens(self, special_tokens: Sequence[str]) -> ChatTemplate:
        """The same template for a tokenizer with these special tokens."""
        other = ChatTemplate.__new__(ChatTemplate)
        other.__dict__.update(self.__dict__)  # environment and lock are shared
        other.special_tokens = tuple(dict.fromkeys((*special_tokens, *self.special_tokens)))
        other._guard = Guard(other.special_tokens)
        return other

    def segments(
        self, messages: Messages, tools: Tools = None, *, train_on: Literal["all", "last"] = "all"
    ) -> list[Segment]:
        """A whole conversation; learned are the assistant's turns, or only the last of them.

        Neighbouring segments differ in `learned` or `turn`. The messages must hold no noncharacter
        U+FDD0 or U+FDD1, which `read_conversation` and `Guard` see to.

        Raises:
            DataError: the template refuses the messages or does too much, or an assistant's turn
            can't be told apart or has no end.
        """
        spoken = _assistant_turns(messages)
        if self.has_markers:
            segments = self._marked(self.render(messages, tools), messages, tools)
        else:
            wanted = range(len(spoken))[-1:] if train_on == "last" else range(len(spoken))
            segments = self._compared(self.render(messages, tools), messages, tools, wanted)
        if train_on == "last":
            segments = [
                segment if segment.turn == len(spoken) - 1 else Segment(segment.text, False)
                for segment in segments
            ]
        return _merged(segments)

    def prompt(
        self, messages: Messages, tools: Tools = None, *, turns: int | None = None
    ) -> list[Segment]:
        """A conversation up to where the assistant begins to write; its earlier turns are learned.

        `turns`: how many of them must be told apart (None: all); a later one that can't be is left
        as it is rendered, not learned.

        Raises:
            DataError: as `segments`.
        """
        full = self.render(messages, tools, add_generation_prompt=True)
        if self.has_markers:
            return _merged(self._marked(full, messages, tools))
        count = len(_assistant_turns(messages))
        needed = count if turns is None else turns
        return _merged(self._compared(full, messages, tools, range(count), needed))

    def render(
        self, messages: Messages, tools: Tools = None, *, add_generation_prompt: bool = False
    ) -> str:
        """The text, with the noncharacters that markers become.

        Raises:
            DataError: the template refuses the messages, fails, or does too much.
        """
        values: dict[str, Any] = {
            **self.variables,
            "messages": list(messages),
            "tools": None if tools is None else list(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        with self._lock:
            self._environment.budget.renew()
            try:
                context = self._template.new_context(values)
                text = "".join(self._template.root_render_func(context))
            except _FAILURES as error:
                raise DataError(f"The chat template fails: {_sentence(error)}.") from error
        if len(text) > MAX_OUTPUT_CHARACTERS:
            raise DataError(
                f"The chat template fails: it writes {len(text):,} characters, more than "
                f"{MAX_OUTPUT_CHARACTERS:,}."
            )
        return text

    def _marked(self, text: str, messages: Messages, tools: Tools) -> list[Segment]:
        """Cut a rendering at its markers. Each marked block belongs to a turn: the first to the
        first, and so on; where a turn may have several, shorter renderings say how many."""
        blocks, total = _blocks(text)
        spoken = _assistant_turns(messages)
        ends = list(range(1, len(spoken) + 1))
        if total != len(spoken):
            ends = [_blocks(self.render(messages[: i + 1], tools))[1] for i in spoken]
            if not ends or ends[-1] != total or ends != sorted(ends):
                raise DataError(
                    f"The chat template marks {total} parts with {{% generation %}} where the "
                    f"assistant has {len(spoken)} turns, and they can't be matched."
                )
        return [
            Segment(part, index is not None, None if index is None else bisect_right(ends, index))
            for part, index in blocks
        ]

    def _compared(
        self,
        full: str,
        messages: Messages,
        tools: Tools,
        wanted: Sequence[int],
        needed: int | None = None,
    ) -> list[Segment]:
        """Cut a rendering at the ends of shorter ones, for the assistant's turns in `wanted`; from
        turn `needed` on, the first that can't be told apart ends this instead of failing."""
        segments: list[Segment] = []
        done = 0
        spoken = _assistant_turns(messages)
        for turn in wanted:
            try:
                start, stop = self._span(full, messages, tools, turn, spoken[turn])
            except DataError:
                if needed is None or turn < needed:
                    raise
                break
            segments += [
                Segment(full[done:start], False),
                Segment(full[start:stop], True, turn),
            ]
            done = stop
        return [*segments, Segment(full[done:], False)]

    def _span(
        self, full: str, messages: Messages, tools: Tools, turn: int, index: int
    ) -> tuple[int, int]:
        """From where to where a rendering is what the assistant wrote in one turn, its end with it."""
        before = self.render(messages[:index], tools, add_generation_prompt=True)
        after = self.render(messages[: index + 1], tools)
        if not (full.startswith(after) and after.startswith(before)):
            raise DataError(
                f"The chat template renders assistant turn {turn + 1} (message {index + 1}) "
                "differently when the conversation goes on, so its text can't be told apart; "
                "set data.train_on=last, or use a template with {% generation %} markers."
            )
        length = self._guard.end_of_last(after[len(before) :])
        if length is None:
            raise DataError(
                f"The chat template doesn't end assistant turn {turn + 1} (message {index + 1}) "
                "with a special token, so a model could never learn to stop."
            )
        return len(before), len(before) + length


def _assistant_turns(messages: Messages) -> list[int]:
    return [i for i, message in enumerate(messages) if message.get("role") == "assistant"]


def _blocks(text: str) -> tuple[list[tuple[str, int | None]], int]:
    """Parts with the number of the marked block they are in, and how many such blocks there are."""
    opened = text.split(SPOKEN_BEGIN)
    parts: list[tuple[str, int | None]] = [(opened[0], None)]
    for number, piece in enumerate(opened[1:]):
        inside, end, outside = piece.partition(SPOKEN_END)
        if not end or SPOKEN_END in outside:
            raise DataError("The chat template nests {% generation %} markers, or cuts them off.")
        parts += [(inside, number), (outside, None)]
    if SPOKEN_END in opened[0]:
        raise DataError("The chat template nests {% generation %} markers, or cuts them off.")
    return parts, len(opened) - 1


def _merged(segments: Sequence[Segment]) -> list[Segment]:
    """Without empty segments, and neighbours of the same kind as one."""
    merged: list[Segment] = []
    for segment in segments:
        if not segment.text:
            continue
        last = merged[-1] if merged else None
        if last and (last.learned, last.turn) == (segment.learned, segment.turn):
            merged[-1] = Segment(last.text + segment.text, last.learned, last.turn)
        else:
            merged.append(segment)
    return merged


def _sentence(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    text = str(error).strip().rstrip(".") or type(error).__name__
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text[:300]}"
