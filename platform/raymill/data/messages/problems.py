"""Why a conversation can't be used: a stable cause to count, and a sentence for the reader."""

from __future__ import annotations

from dataclasses import dataclass

CAUSES = (
    "format",  # none of the known formats, or not the one that was asked for
    "type",  # a value of the wrong type: a number for text, an image, half a surrogate pair
    "role",  # a role that isn't known
    "order",  # roles in an order that no chat has
    "empty",  # nothing, or nothing but whitespace, where text belongs
    "no_assistant",  # nobody to learn from
    "unread",  # something that would change what is learned, and that nothing reads
    "special_text",  # characters kept for marking, or control tokens that can't be made text
    "template",  # the chat template refused it, or its assistant's part can't be told apart
    "boundary",  # a token lies half inside and half outside what is learned
    "over_long",  # more tokens than a row holds, and no whole turn less would do
    "group",  # no usable value in the column that decides the side
    "unreadable",  # the record itself can't be read
    "unpredicted",  # the first token would be learned, and nothing stands before it
)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a conversation. `cause`: one of CAUSES; `why`: one sentence."""

    cause: str
    why: str


class Refused(Exception):  # noqa: N818  (carries a Problem up to `read_conversation`, no further)
    """Raised while a record is read; never leaves this room."""

    def __init__(self, cause: str, why: str) -> None:
        super().__init__(why)
        self.problem = Problem(cause, why)
