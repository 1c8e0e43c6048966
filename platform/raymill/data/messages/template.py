"""A chat template: messages in, text out, with the assistant's part told apart.

Two kinds of templates. Those with `{% generation %}` markers say themselves what the assistant
writes. For all others (most models' own) renderings are compared: what the messages before a turn
render to, with the prompt for the assistant, must begin what they render to with the turn; what
comes after is the assistant's, up to the special token that ends the turn. In both kinds a turn
begins where the prompt for the assistant ends, since a model is never asked otherwise.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from raymill.data.messages.budget import MAX_OUTPUT_CHARACTERS
from raymill.data.messages.chatml import CHATML
from raymill.data.messages.guard import RESERVED, SPOKEN_BEGIN, SPOKEN_END, Guard
from raymill.data.messages.sandbox import BoundedEnvironment
from raymill.data.messages.segments import Segment, blocks, common_start, cut
from raymill.data.messages.spelling import ANSWER, QUESTION, Messages, Spelling, find_spelling
from raymill.errors import DataError

__all__ = ["CHATML", "ChatTemplate", "Segment", "UnaskedError"]

MAX_SOURCE_BYTES = 64 * 2**10

# What compiled templates raise: theirs, and Python's own for wrong types, missing keys, depth.
_FAILURES = (
    TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, NameError,
    RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip

_PROBE = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER})

Tools = Sequence[Mapping[str, Any]] | None


class UnaskedError(DataError):
    """A turn doesn't go on from what the template asks for it with."""


class RewrittenError(DataError):
    """The template renders a turn otherwise when the conversation goes on."""


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
        other.__dict__.pop("_tail", None)  # it depends on the tokens
        other.special_tokens = tuple(dict.fromkeys((*special_tokens, *self.special_tokens)))
        other._guard = Guard(other.special_tokens)
        return other

    def segments(
        self,
        messages: Messages,
        tools: Tools = None,
        *,
        train_on: Literal["all", "last"] | Sequence[int] = "all",
    ) -> list[Segment]:
        """A whole conversation; learned are the assistant's turns, the last, or those of these numbers.

        Neighbouring segments differ in `learned` or `turn`. The messages must hold no noncharacter
        U+FDD0 or U+FDD1, which `read_conversation` and `Guard` see to.

        Raises:
            DataError: the template refuses the messages or does too much, or an assistant's turn
            can't be told apart or has no end.
        """
        turns = _assistant_turns(messages)
        full = self.render(messages, tools)
        last = range(len(turns))[-1:]
        wanted: Sequence[int] = train_on if not isinstance(train_on, str) else range(len(turns))
        wanted = last if train_on == "last" else wanted
        try:
            return self._told_apart(full, messages, tools, wanted, len(turns))
        except RewrittenError:
            # It advises to learn the last turn alone: if that fails, this is the error to tell.
            self._told_apart(full, messages, tools, last, len(turns))
            raise

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
        count = len(_assistant_turns(messages))
        return self._told_apart(
            full, messages, tools, range(count), count if turns is None else turns
        )

    def text(self, messages: Messages, tools: Tools = None, *, prompt: bool = False) -> str:
        """Return what transformers' `apply_chat_template` gives for the messages in the form that the
        template reads; with `prompt`, up to where the assistant begins to write.

        Raises:
            DataError: the template refuses the messages, fails, or does too much.
        """
        text = self.render(messages, tools, add_generation_prompt=prompt)
        return text.replace(SPOKEN_BEGIN, "").replace(SPOKEN_END, "") if self.has_markers else text

    def render(
        self, messages: Messages, tools: Tools = None, *, add_generation_prompt: bool = False
    ) -> str:
        """The text, with the noncharacters that markers become. Messages are given to the template in
        the form that it reads.

        Raises:
            DataError: the template refuses the messages, fails, or does too much.
        """
        return self._render(self._spelling.apply(messages), tools, add_generation_prompt)

    def _render(
        self, messages: Messages, tools: Tools = None, add_generation_prompt: bool = False
    ) -> str:
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

    @cached_property
    def _spelling(self) -> Spelling:
        return find_spelling(self.source, self._render)

    @cached_property
    def _asks_with(self) -> str:
        """Return what the template writes after a question to have it answered."""
        try:
            question = self.text(_PROBE[:1])
            return self.text(_PROBE[:1], prompt=True).removeprefix(question)
        except DataError:
            return ""

    @cached_property
    def _tail(self) -> str:
        """Return what the template writes after the token that ends a turn where the conversation ends, and
        nowhere else, if that holds a special token: as Phi 3's end of text."""
        try:
            ends, goes_on = self.text(_PROBE), self.text((*_PROBE, _PROBE[0]))
        except DataError:
            return ""
        shared = common_start(ends, goes_on)
        stop = self._guard.end_of_last(shared) or 0
        known = ANSWER in shared[:stop] and self._guard.end_of_last(ends[stop:]) is not None
        return ends[stop:] if known else ""

    def _told_apart(
        self,
        full: str,
        messages: Messages,
        tools: Tools,
        wanted: Sequence[int],
        needed: int,
    ) -> list[Segment]:
        """Cut a rendering into what the assistant wrote in the turns in `wanted`, and the rest; from
        turn `needed` on, the first that can't be told apart ends this instead of failing."""
        marked = self._marks(full, messages, tools) if self.has_markers else None
        text = full if marked is None else "".join(part for part, _ in blocks(full)[0])
        spans: list[tuple[int, int, int]] = []
        for turn in wanted:
            try:
                if marked is None:
                    found = [self._span(text, messages, tools, turn)]
                else:
                    found = self._clipped(text, messages, tools, turn, marked.get(turn, []))
            except DataError:
                if turn < needed:
                    raise
                break
            spans += [(start, stop, turn) for start, stop in found]
        return cut(text, spans)

    def _marks(
        self, full: str, messages: Messages, tools: Tools
    ) -> dict[int, list[tuple[int, int]]]:
        """From where to where a rendering without markers is marked, by turn. The first marked block
        belongs to the first turn, and so on; where a turn may have several, what was said before it
        says how many are of others."""
        marked, total = blocks(full)
        spoken = _assistant_turns(messages)
        firsts = list(range(len(spoken)))
        if total != len(spoken):
            firsts = [blocks(self.render(messages[:i], tools))[1] for i in spoken]
            if not firsts or firsts[0] != 0 or firsts != sorted(set(firsts)) or firsts[-1] >= total:
                raise DataError(
                    f"The chat template marks {total} parts with {{% generation %}} where the "
                    f"assistant has {len(spoken)} turns, and they can't be matched."
                )
        spans: dict[int, list[tuple[int, int]]] = {}
        start = 0
        for part, number in marked:
            if number is not None:
                spans.setdefault(bisect_right(firsts, number) - 1, []).append(
                    (start, start + len(part))
                )
            start += len(part)
        return spans

    def _clipped(
        self,
        text: str,
        messages: Messages,
        tools: Tools,
        turn: int,
        spans: Sequence[tuple[int, int]],
    ) -> list[tuple[int, int]]:
        """Marked spans of a turn without what the prompt for it has written already, and without the
        space, or the end of the text, behind the token that ends it."""
        if not spans:
            return []
        index = _assistant_turns(messages)[turn]
        begin, end = self._begin(text, messages, tools, turn, spans[0][0]), spans[-1][1]
        if index == len(messages) - 1 and text.endswith(self._tail):
            end = min(end, len(text) - len(self._tail))
        kept = [(max(start, begin), min(stop, end)) for start, stop in spans]
        kept = [(start, stop) for start, stop in kept if start < stop]
        if kept:
            start, stop = kept[-1]
            length = self._guard.end_of_last(text[start:stop])
            if length is not None and text[start + length : stop].isspace():
                kept[-1] = (start, start + length)
        return kept

    def _begin(self, text: str, messages: Messages, tools: Tools, turn: int, start: int) -> int:
        """From where a turn is the assistant's, marked from `start` on: not before its prompt ends."""
        if self._asks_with and text.endswith(self._asks_with, 0, start):
            return start
        index = _assistant_turns(messages)[turn]
        before = self.text(messages[:index], tools, prompt=True)
        if text.startswith(before):
            return max(start, len(before))
        # Earlier turns may be written otherwise now; what asks for this one may not.
        shared = common_start(before, self.text(messages[:index], tools))
        asked = before[len(shared) :]
        known = max(n for n in range(len(asked) + 1) if text.endswith(asked[:n], 0, start))
        if not text.startswith(asked[known:], start):
            raise _unasked(turn, index, asked, text[start:])
        return start + len(asked) - known

    def _span(self, full: str, messages: Messages, tools: Tools, turn: int) -> tuple[int, int]:
        """From where to where a rendering is what the assistant wrote in one turn, its end with it."""
        index = _assistant_turns(messages)[turn]
        before = self.render(messages[:index], tools, add_generation_prompt=True)
        after = self.render(messages[: index + 1], tools)
        if not after.startswith(before):
            shared = len(common_start(before, self.render(messages[:index], tools)))
            if after.startswith(before[:shared]):
                raise _unasked(turn, index, before[shared:], after[shared:])
            raise UnaskedError(
                f"The chat template renders what stands before assistant turn {turn + 1} (message "
                f"{index + 1}) differently once that is there, so its text can't be told apart"
            )
        length = self._guard.end_of_last(after[len(before) :].removesuffix(self._tail))
        if length is None:
            raise DataError(
                f"The chat template doesn't end assistant turn {turn + 1} (message {index + 1}) "
                "with a special token, so a model could never learn to stop; use one that does, "
                "as data.template=chatml."
            )
        stop = len(before) + length
        if not full.startswith(after[:stop]):
            raise RewrittenError(
                f"The chat template renders assistant turn {turn + 1} (message {index + 1}) "
                "differently when the conversation goes on, so its text can't be told apart; "
                "set data.train_on=last, or use a template with {% generation %} markers."
            )
        return len(before), stop


def _unasked(turn: int, index: int, asked: str, written: str) -> UnaskedError:
    return UnaskedError(
        f"The chat template asks for assistant turn {turn + 1} (message {index + 1}) with "
        f"{asked[-60:]!r} and writes {written[:60]!r}: a model would be trained on what it is "
        "never asked for"
    )


def _assistant_turns(messages: Messages) -> list[int]:
    return [i for i, message in enumerate(messages) if message.get("role") == "assistant"]


def _sentence(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    text = str(error).strip().rstrip(".") or type(error).__name__
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text[:300]}"
