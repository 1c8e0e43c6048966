"""A generated turn, read back into the message that the template would write so."""

from __future__ import annotations

from dataclasses import dataclass

from raymill.data.messages.spelling import ANSWER, QUESTION, THOUGHT
from raymill.data.messages.template import ChatTemplate
from raymill.data.messages.thinking import opened_thought
from raymill.errors import DataError

_ASKED = {"role": "user", "content": QUESTION}
_PLAIN = {"role": "assistant", "content": ANSWER}


@dataclass(frozen=True)
class TurnForm:
    """A template's own text in a turn: before the thinking, and between it and the content; before the
    content of a turn without thinking; and what of a thought its prompt has begun already."""

    thinking: tuple[str, str] | None
    plain: str
    opened: str

    def read(self, text: str) -> dict[str, str]:
        """The message of a turn without its end. Where it has neither form, its text is the content."""
        if self.thinking is not None:
            begin, between = self.thinking
            thought, found, content = text.removeprefix(begin).partition(between)
            if found and text.startswith(begin):
                return {"role": "assistant", "content": content, "reasoning_content": thought}
        if self.plain and text.startswith(self.plain):
            return {"role": "assistant", "content": text.removeprefix(self.plain)}
        return {"role": "assistant", "content": self.opened + text}


def turn_form(template: ChatTemplate) -> TurnForm:
    """The form that a template's turns have, found by having it write some."""
    thoughtful = _written(template, {**_PLAIN, "reasoning_content": THOUGHT})
    begin, found, rest = thoughtful.partition(THOUGHT)
    between, answered, _ = rest.partition(ANSWER)
    try:
        opened = opened_thought(template.text([_ASKED], prompt=True))
    except DataError:
        opened = ""
    return TurnForm(
        (begin, between) if found and answered and between else None,
        _written(template, _PLAIN).partition(ANSWER)[0],
        opened,
    )


def _written(template: ChatTemplate, message: dict[str, str]) -> str:
    """Return what is the assistant's in a turn; "" where that can't be told apart."""
    try:
        segments = template.segments([_ASKED, message])
    except DataError:
        return ""
    return "".join(segment.text for segment in segments if segment.learned)
