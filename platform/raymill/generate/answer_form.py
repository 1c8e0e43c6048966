"""Form of a model's answers: which marks its template puts around thoughts and tool calls, and its reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from raymill.data.messages.encode import ChatEncoder
from raymill.generate.thoughts import ThoughtMarks, ThoughtPiece, ThoughtSplitter, thought_marks
from raymill.generate.tools import ToolCall, ToolFormat, ToolPiece, ToolSplitter, tool_format_of


@dataclass(frozen=True)
class AnswerForm:
    """Marks of thoughts and of calls, each None where the template knows none.

    `special_ids`: the tokenizer's special tokens that may occur in answers without ending them.
    """

    thoughts: ThoughtMarks | None
    tools: ToolFormat | None
    special_ids: Mapping[str, int]

    def shown(self, *, with_tools: bool) -> frozenset[int]:
        """Return the special tokens that belong to marks, which a decoder must spell out."""
        texts: list[str] = []
        if self.thoughts is not None:
            texts += [self.thoughts.opens, self.thoughts.closes, self.thoughts.plain]
        if self.tools is not None and with_tools:
            texts += self.tools.marks
        return frozenset(
            index
            for token, index in self.special_ids.items()
            if any(token in text for text in texts)
        )


def answer_form(encoder: ChatEncoder) -> AnswerForm:
    """Return the form of the answers that a template writes."""
    inside = {
        token: index
        for token, index in encoder.special_ids.items()
        if index not in encoder.stop_ids
    }
    return AnswerForm(thought_marks(encoder), tool_format_of(encoder.template), inside)


class AnswerPiece(NamedTuple):
    """Pieces of an answer's thought and content, and calls that have been completed."""

    thought: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()


class AnswerReader:
    """Reads the text of an answer that comes in pieces; without `with_tools`, calls are content."""

    def __init__(self, form: AnswerForm, *, with_tools: bool) -> None:
        self._thoughts = ThoughtSplitter(form.thoughts)
        self._tools = ToolSplitter(form.tools if with_tools else None)

    def push(self, text: str) -> AnswerPiece:
        """Take text; return the parts that have become certain."""
        split = self._thoughts.push(text)
        return _piece(split, self._tools.push(split.content))

    def finish(self) -> AnswerPiece:
        """Return the text that was held back, which no other text follows."""
        split = self._thoughts.finish()
        last, end = self._tools.push(split.content), self._tools.finish()
        return _piece(split, ToolPiece(last.content + end.content, last.calls + end.calls))


def _piece(split: ThoughtPiece, tools: ToolPiece) -> AnswerPiece:
    return AnswerPiece(split.thought, tools.content, tools.calls)
