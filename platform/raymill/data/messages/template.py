"""Chat templates: render messages as text, and locate the assistant's turns in it.

Templates with `{% generation %}` markers mark the assistant's text themselves. For all others (most models'
own) two renderings are compared: that of the messages before a turn, with the generation prompt, must be a
prefix of that of the messages with the turn. The text behind the prefix is the assistant's, up to the special
token that ends the turn. With and without markers a turn begins where the generation prompt ends, since a
model is never prompted differently.
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
from raymill.data.messages.guard import ASSISTANT_BEGIN, ASSISTANT_END, RESERVED, SpecialTokenGuard
from raymill.data.messages.keys import JsonObject, Record
from raymill.data.messages.message_layout import (
    ANSWER,
    QUESTION,
    MessageLayout,
    Messages,
    detect_layout,
)
from raymill.data.messages.sandbox import BoundedEnvironment
from raymill.data.messages.segments import (
    RenderedSegment,
    common_prefix,
    marked_blocks,
    segment_text,
)
from raymill.errors import DataError

__all__ = ["CHATML", "ChatTemplate", "PromptMismatchError", "RenderedSegment"]

MAX_SOURCE_BYTES = 64 * 2**10

# Compiled templates raise Jinja's errors, and Python's own for wrong types, missing keys and depth.
_FAILURES = (
    TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, NameError,
    RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip

_PROBE = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER})

Tools = Sequence[Record] | None


class PromptMismatchError(DataError):
    """The rendering of a turn doesn't continue its generation prompt."""


class RewrittenError(DataError):
    """The template renders a turn differently when the conversation continues."""


class ChatTemplate:
    """A compiled template.

    `variables` are names that it may use along with the messages (bos_token, eos_token, …). `special_tokens`
    are the tokenizer's, which are needed for templates without markers; values of variables named `…_token`
    also count.

    Raises:
        DataError: it doesn't parse, is longer than 64 KiB, or uses a feature that isn't allowed.
    """

    def __init__(
        self, source: str, variables: Mapping[str, str], special_tokens: Sequence[str] = ()
    ) -> None:
        # The size is limited, since parsing and compiling aren't covered by the budget.
        if len(source.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
            raise DataError(f"The chat template is longer than {MAX_SOURCE_BYTES >> 10} KiB.")
        if any(RESERVED.search(text) for text in (source, *variables.values())):
            raise DataError("The chat template contains a noncharacter (U+FDD0 to U+FDEF).")
        self.source, self.variables = source, dict(variables)
        # Without markers, turns end with a special token, which a variable may name.
        named = [text for name, text in variables.items() if name.endswith("_token")]
        self.special_tokens = tuple(dict.fromkeys((*special_tokens, *named)))
        self._guard = SpecialTokenGuard(self.special_tokens)
        self._environment = BoundedEnvironment()
        # All renderings share the environment's budget, so only one may run at a time.
        self._lock = threading.Lock()
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
        """Return the same template for a tokenizer with these special tokens."""
        other = ChatTemplate.__new__(ChatTemplate)
        # The environment and its lock are shared, but the text behind the last turn depends on the tokens.
        other.__dict__.update(self.__dict__)
        other.__dict__.pop("_tail", None)
        other.special_tokens = tuple(dict.fromkeys((*special_tokens, *self.special_tokens)))
        other._guard = SpecialTokenGuard(other.special_tokens)
        return other

    def segments(
        self,
        messages: Messages,
        tools: Tools = None,
        *,
        train_on: Literal["all", "last"] | Sequence[int] = "all",
    ) -> list[RenderedSegment]:
        """Render a conversation; learned are all of the assistant's turns, the last, or those of these numbers.

        Neighboring segments differ in `learned` or `turn`. The messages must not contain the noncharacters
        U+FDD0 and U+FDD1, which `read_conversation` and `SpecialTokenGuard` refuse.

        Raises:
            DataError: the template refuses the messages or does too much, or an assistant's turn can't be
            located or has no end.
        """
        turns = _assistant_turns(messages)
        full = self.render(messages, tools)
        last = range(len(turns))[-1:]
        wanted: Sequence[int] = train_on if not isinstance(train_on, str) else range(len(turns))
        wanted = last if train_on == "last" else wanted
        try:
            return self._split_turns(full, messages, tools, wanted, len(turns))
        except RewrittenError:
            # The error advises to learn only the last turn: if that fails too, its own error is raised instead.
            self._split_turns(full, messages, tools, last, len(turns))
            raise

    def prompt(
        self, messages: Messages, tools: Tools = None, *, turns: int | None = None
    ) -> list[RenderedSegment]:
        """Render a conversation with the generation prompt; the assistant's earlier turns are learned.

        `turns` of them must be located (None: all); a later turn that can't be located isn't marked as learned.

        Raises:
            DataError: as `segments`.
        """
        full = self.render(messages, tools, add_generation_prompt=True)
        count = len(_assistant_turns(messages))
        return self._split_turns(
            full, messages, tools, range(count), count if turns is None else turns
        )

    def text(self, messages: Messages, tools: Tools = None, *, prompt: bool = False) -> str:
        """Return the text of transformers' `apply_chat_template` for the messages in the template's layout.

        With `prompt`, the text ends with the generation prompt.

        Raises:
            DataError: the template refuses the messages, fails, or does too much.
        """
        text = self.render(messages, tools, add_generation_prompt=prompt)
        return (
            text.replace(ASSISTANT_BEGIN, "").replace(ASSISTANT_END, "")
            if self.has_markers
            else text
        )

    def render(
        self, messages: Messages, tools: Tools = None, *, add_generation_prompt: bool = False
    ) -> str:
        """Return the text with noncharacters in place of markers; messages are put into the template's layout.

        Raises:
            DataError: the template refuses the messages, fails, or does too much.
        """
        return self._render(self._layout.apply(messages), tools, add_generation_prompt)

    def _render(
        self, messages: Messages, tools: Tools = None, add_generation_prompt: bool = False
    ) -> str:
        values: JsonObject = {
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
        # The budget of steps would allow about twice as many characters.
        if len(text) > MAX_OUTPUT_CHARACTERS:
            raise DataError(
                f"The chat template fails: it writes {len(text):,} characters, more than "
                f"{MAX_OUTPUT_CHARACTERS:,}."
            )
        return text

    @cached_property
    def _layout(self) -> MessageLayout:
        return detect_layout(self.source, self._render)

    @cached_property
    def _generation_prompt(self) -> str:
        """The text that the template writes behind a question to have it answered."""
        try:
            question = self.text(_PROBE[:1])
            return self.text(_PROBE[:1], prompt=True).removeprefix(question)
        except DataError:
            return ""

    @cached_property
    def _tail(self) -> str:
        """The text behind the last turn, if it has a special token and occurs only there (as in Phi 3)."""
        try:
            ends, goes_on = self.text(_PROBE), self.text((*_PROBE, _PROBE[0]))
        except DataError:
            return ""
        shared = common_prefix(ends, goes_on)
        stop = self._guard.end_of_last(shared) or 0
        known = ANSWER in shared[:stop] and self._guard.end_of_last(ends[stop:]) is not None
        return ends[stop:] if known else ""

    def _split_turns(
        self,
        full: str,
        messages: Messages,
        tools: Tools,
        wanted: Sequence[int],
        needed: int,
    ) -> list[RenderedSegment]:
        """Cut a rendering into the assistant's turns in `wanted` and the rest.

        From turn `needed` on, the first turn that can't be located ends the search instead of failing.
        """
        marked = self._marked_spans(full, messages, tools) if self.has_markers else None
        text = full if marked is None else "".join(part for part, _ in marked_blocks(full)[0])
        spans: list[tuple[int, int, int]] = []
        for turn in wanted:
            try:
                if marked is None:
                    of_turn = [self._span(text, messages, tools, turn)]
                else:
                    of_turn = self._clipped(text, messages, tools, turn, marked.get(turn, []))
            except DataError:
                if turn < needed:
                    raise
                break
            spans += [(start, stop, turn) for start, stop in of_turn]
        return segment_text(text, spans)

    def _marked_spans(
        self, full: str, messages: Messages, tools: Tools
    ) -> dict[int, list[tuple[int, int]]]:
        """Return the marked spans (start, stop) of a rendering by turn, in the text without markers.

        The first block belongs to the first turn, and so on. If turns may have several blocks, the number of
        blocks in the rendering of the messages before a turn tells which is its first.
        """
        marked, total = marked_blocks(full)
        turns = _assistant_turns(messages)
        firsts = list(range(len(turns)))
        if total != len(turns):
            firsts = [marked_blocks(self.render(messages[:i], tools))[1] for i in turns]
            if not firsts or firsts[0] != 0 or firsts != sorted(set(firsts)) or firsts[-1] >= total:
                raise DataError(
                    f"The chat template marks {total} parts with {{% generation %}} where the "
                    f"assistant has {len(turns)} turns, and they can't be matched."
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
        """Clip the marked spans of a turn: without its generation prompt, and ending with its end token.

        Space behind that token, or the end of the text, isn't learned.
        """
        if not spans:
            return []
        index = _assistant_turns(messages)[turn]
        begin, end = self._turn_start(text, messages, tools, turn, spans[0][0]), spans[-1][1]
        if index == len(messages) - 1 and text.endswith(self._tail):
            end = min(end, len(text) - len(self._tail))
        kept = [(max(start, begin), min(stop, end)) for start, stop in spans]
        # A block may lie completely within the generation prompt.
        kept = [(start, stop) for start, stop in kept if start < stop]
        if kept:
            start, stop = kept[-1]
            length = self._guard.end_of_last(text[start:stop])
            if length is not None and text[start + length : stop].isspace():
                kept[-1] = (start, start + length)
        return kept

    def _turn_start(
        self, text: str, messages: Messages, tools: Tools, turn: int, start: int
    ) -> int:
        """Return where a turn marked from `start` on begins: not before its generation prompt ends."""
        if self._generation_prompt and text.endswith(self._generation_prompt, 0, start):
            return start
        index = _assistant_turns(messages)[turn]
        before = self.text(messages[:index], tools, prompt=True)
        if text.startswith(before):
            return max(start, len(before))
        # Earlier turns may be rendered differently now, but the generation prompt of this one may not.
        shared = common_prefix(before, self.text(messages[:index], tools))
        prompt = before[len(shared) :]
        known = max(n for n in range(len(prompt) + 1) if text.endswith(prompt[:n], 0, start))
        if not text.startswith(prompt[known:], start):
            raise _prompt_mismatch(turn, index, prompt, text[start:])
        return start + len(prompt) - known

    def _span(self, full: str, messages: Messages, tools: Tools, turn: int) -> tuple[int, int]:
        """Return the span of one turn in a rendering, its end token included."""
        index = _assistant_turns(messages)[turn]
        before = self.render(messages[:index], tools, add_generation_prompt=True)
        after = self.render(messages[: index + 1], tools)
        if not after.startswith(before):
            shared = len(common_prefix(before, self.render(messages[:index], tools)))
            if after.startswith(before[:shared]):
                raise _prompt_mismatch(turn, index, before[shared:], after[shared:])
            raise PromptMismatchError(
                f"The chat template renders the messages before assistant turn {turn + 1} (message "
                f"{index + 1}) differently once that turn is there, so its text can't be located"
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
                "differently when the conversation continues, so its text can't be located; "
                "set data.train_on=last, or use a template with {% generation %} markers."
            )
        return len(before), stop


def _prompt_mismatch(turn: int, index: int, prompt: str, written: str) -> PromptMismatchError:
    return PromptMismatchError(
        f"The chat template prompts for assistant turn {turn + 1} (message {index + 1}) with "
        f"{prompt[-60:]!r} but renders the turn as {written[:60]!r}: a model would be trained on text that it "
        "is never prompted for"
    )


def _assistant_turns(messages: Messages) -> list[int]:
    return [i for i, message in enumerate(messages) if message.get("role") == "assistant"]


def _sentence(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    text = str(error).strip().rstrip(".") or type(error).__name__
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text[:300]}"
