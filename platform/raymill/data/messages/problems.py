"""Reasons for which a record can't be used: a stable cause to count by, and a sentence for the reader."""

from __future__ import annotations

from dataclasses import dataclass

CAUSES = (
    "format",  # none of the known formats, or not the configured one
    "type",  # a value of the wrong type: a number for text, an image, half a surrogate pair
    "role",  # a role that isn't known
    "order",  # roles in an order that no chat has
    "empty",  # nothing, or nothing but whitespace, where text belongs
    "no_assistant",  # no turn of the assistant to learn from
    "unread",  # a key that would change what is learned, but that nothing reads
    "special_text",  # characters kept for marking, or control tokens that can't be made text
    "template",  # the chat template refused it, or the assistant's text can't be located in it
    "boundary",  # a token is partly inside and partly outside the learned text
    "over_long",  # more tokens than a row holds, even without the last turns
    "group",  # no usable value in the column that decides the split
    "unreadable",  # the record itself can't be read
    "unpredicted",  # the first token would be learned, though no token precedes it
)


@dataclass(frozen=True)
class Problem:
    """A reason not to use a record: `cause` is one of CAUSES, `why` is one sentence."""

    cause: str
    why: str


class Refused(Exception):  # noqa: N818  (carries a Problem up to the kind's reader, no further)
    """Raised while a record is parsed; readers such as `read_conversation` return its problem."""

    def __init__(self, cause: str, why: str) -> None:
        super().__init__(why)
        self.problem = Problem(cause, why)
