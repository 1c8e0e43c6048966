"""Thoughts of an answer, split from its content while it is still being written.

Templates say how thoughts are written: their own text before and behind a thought is found by rendering one.
Some prompts open the thought, so that the answer has only its closing mark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from raymill.data.messages.encode import ChatEncoder

# Marks of templates that write no thoughts themselves, but open them or cut them from earlier turns.
_OPENS, _CLOSES = "<think>", "</think>"


@dataclass(frozen=True)
class ThoughtMarks:
    """Text before and behind a thought; `plain` is that before the content of an answer without a thought.

    `opened`: the prompt ends with the opening mark, so that an answer begins inside a thought.
    """

    opens: str = _OPENS
    closes: str = _CLOSES
    plain: str = ""
    opened: bool = False


class ThoughtPiece(NamedTuple):
    """Pieces of an answer's thought and of its content."""

    thought: str = ""
    content: str = ""


def thought_marks(encoder: ChatEncoder) -> ThoughtMarks | None:
    """Return the marks of a template's thoughts, or None if it knows none."""
    form = encoder.turn_parser
    opened = bool(form.opened)
    if form.thinking is not None:
        opens, closes = (text.strip() for text in form.thinking)
        # The turns of a template that opens thoughts begin behind the opening mark.
        opens = opens or form.opened.strip()
        if opens and closes:
            plain = form.plain.strip()
            # Some templates write an empty thought before a content without one.
            return ThoughtMarks(opens, closes, "" if plain.startswith(opens) else plain, opened)
    return ThoughtMarks(opened=opened) if opened or _CLOSES in encoder.template.source else None


class ThoughtSplitter:
    """Splits the text of an answer that comes in pieces.

    An answer has at most one thought, at its beginning; if that isn't closed, all is thought. The marks, and
    the space around a thought, belong to neither part. `marks` None: all is content.
    """

    def __init__(self, marks: ThoughtMarks | None) -> None:
        self._marks = marks or ThoughtMarks()
        # At the beginning, it isn't certain yet whether there is a thought.
        self._state: Literal["beginning", "thought", "content"] = (
            "content" if marks is None else "beginning"
        )
        self._held = ""
        self._skips_space = False

    def push(self, text: str) -> ThoughtPiece:
        """Take text; return the parts that have become certain."""
        self._held += text
        if self._state == "beginning":
            self._begin(final=False)
        return ThoughtPiece(self._thought(), self._content())

    def finish(self) -> ThoughtPiece:
        """Return the text that was held back, which no other text follows."""
        if self._state == "beginning":
            self._begin(final=True)
        thought = self._thought()
        if self._state == "thought":
            thought, self._held = thought + self._held.rstrip(), ""
        return ThoughtPiece(thought, self._content())

    def _begin(self, final: bool) -> None:
        """Decide what the answer begins with, unless that needs more text."""
        marks, text = self._marks, self._held.lstrip()
        known = [mark for mark in (marks.opens, marks.plain) if mark]
        if not final and any(mark != text and mark.startswith(text) for mark in known):
            return
        if text.startswith(marks.opens) or marks.opened:
            self._enter("thought", text.removeprefix(marks.opens))
        elif marks.plain and text.startswith(marks.plain):
            self._enter("content", text.removeprefix(marks.plain))
        else:
            self._state = "content"

    def _enter(self, state: Literal["thought", "content"], text: str) -> None:
        self._state, self._held, self._skips_space = state, text, True

    def _without_space(self) -> str:
        """Return the held text without the space that a mark leaves at its beginning."""
        text = self._held.lstrip() if self._skips_space else self._held
        self._skips_space = self._skips_space and not text
        return text

    def _thought(self) -> str:
        if self._state != "thought":
            return ""
        closes = self._marks.closes
        text = self._without_space()
        thought, mark, content = text.partition(closes)
        if mark:
            self._enter("content", content)
            return thought.rstrip()
        # Space is held back too: it may be that before the closing mark.
        thought = text[: len(text) - overlap(text, closes)].rstrip()
        self._held = text[len(thought) :]
        return thought

    def _content(self) -> str:
        if self._state != "content":
            return ""
        text, self._held = self._without_space(), ""
        return text


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest proper prefix of a mark with which a text ends."""
    lengths = range(min(len(text), len(mark) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(mark[:length])), 0)
