"""Conversations to token ids with a mask of what is learned: the assistant's words and the token
that ends its turn.

The prompt at generation is encoded by the same code, with the tokens that were really generated in
their places, so a model is asked in the form in which it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from raymill.data.chat.conversation import Conversation, Problem
from raymill.data.chat.guard import RESERVED
from raymill.data.chat.pieces import Piece, SegmentEncoder, special_ids
from raymill.data.chat.template import ChatTemplate, Segment
from raymill.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ChatEncoder", "EncodedChat", "special_ids"]

_PROBE = Conversation(
    ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"})
)


@dataclass(frozen=True)
class EncodedChat:
    """A conversation's ids [n], whether each is learned [n], and the UTF-8 bytes of text behind
    each [n] (special tokens: 0). The first token is never learned: nothing predicts it."""

    ids: NDArray[np.uint32]
    learned: NDArray[np.bool_]
    token_bytes: NDArray[np.uint32]


class ChatEncoder:
    """Encodes conversations with one tokenizer and one template.

    `end_of_turn_id`: the special token that ends the assistant's turns; `stop_ids`: it and
    `end_of_text_id` where that is known. The tokenizer is copied, not changed.

    Raises:
        DataError: the template fails on a user's and an assistant's message, or the assistant's
        turn doesn't end with a learned special token, so that a model could never learn to stop.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, end_of_text_id: int | None = None
    ) -> None:
        self._segments = SegmentEncoder(tokenizer)
        self._template = template.with_special_tokens(tuple(self._segments.special_ids))
        self.end_of_turn_id = self._find_end_of_turn()
        known = () if end_of_text_id is None else (end_of_text_id,)
        self.stop_ids = frozenset((self.end_of_turn_id, *known))

    def encode(
        self, conversations: Sequence[Conversation], train_on: Literal["all", "last"] = "all"
    ) -> list[EncodedChat | Problem]:
        """Every conversation encoded, or why it can't be. Segments of all are encoded together.

        Causes: `template`, `special_text`, `boundary`, `unpredicted`.
        """
        rendered = [self._rendered(conversation, train_on) for conversation in conversations]
        usable = [segments for segments in rendered if not isinstance(segments, Problem)]
        encoded = iter(self._segments.encode(usable))
        results: list[EncodedChat | Problem] = []
        for segments in rendered:
            if isinstance(segments, Problem):
                results.append(segments)
                continue
            pieces = next(encoded)
            results.append(
                pieces if isinstance(pieces, Problem) else self._assembled(segments, pieces)
            )
        return results

    def prompt_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        spoken: Sequence[Sequence[int]] = (),
    ) -> list[int]:
        """Ids up to and including the prompt for the assistant's next turn.

        `spoken[i]`: the tokens that were generated as the assistant's turn i, its end included;
        they are put in place of that turn as they are. What other turns spell as special tokens is
        text.

        Raises:
            DataError: the template fails, or a turn in `spoken` can't be told apart; a message
            contains a noncharacter (U+FDD0 to U+FDEF).
        """
        guard = self._segments.guard
        asked = guard.broken(_without_reserved(messages, len(spoken)))
        segments = self._template.prompt(asked, guard.broken(tools), turns=len(spoken))
        [pieces] = self._segments.encode([segments])
        if isinstance(pieces, Problem):
            raise DataError(f"The conversation can't be encoded: {pieces.why}.")
        told_apart = {segment.turn for segment in segments}
        missing = [turn for turn in range(len(spoken)) if turn not in told_apart]
        if missing:
            raise DataError(
                f"Generated tokens are given for turn {missing[0] + 1}, which isn't there."
            )
        ids: list[int] = []
        for number, (segment, piece) in enumerate(zip(segments, pieces, strict=True)):
            turn = segment.turn
            if turn is None or turn >= len(spoken):
                if not _within(segments, number, len(spoken)):
                    ids += piece.ids.tolist()
            elif all(earlier.turn != turn for earlier in segments[:number]):
                ids += spoken[turn]
        return ids

    def _rendered(
        self, conversation: Conversation, train_on: Literal["all", "last"]
    ) -> list[Segment] | Problem:
        guard = self._segments.guard
        try:
            messages, tools = guard.broken(conversation.messages), guard.broken(conversation.tools)
        except DataError as error:
            return Problem("special_text", str(error))
        try:
            segments = self._template.segments(messages, tools, train_on=train_on)
        except DataError as error:
            return Problem("template", str(error))
        if not any(segment.learned for segment in segments):
            return Problem("template", "the chat template leaves out what the assistant wrote")
        left_out = _left_out(conversation)
        if left_out:
            segments = [
                replace(one, learned=False) if one.turn in left_out else one for one in segments
            ]
        if not any(segment.learned for segment in segments):
            return Problem("no_assistant", _nothing_learned(conversation, train_on))
        return segments

    def _assembled(
        self, segments: Sequence[Segment], pieces: Sequence[Piece]
    ) -> EncodedChat | Problem:
        lengths = [len(piece.ids) for piece in pieces]
        chat = EncodedChat(
            np.concatenate([piece.ids for piece in pieces]),
            np.repeat([segment.learned for segment in segments], lengths),
            np.concatenate([piece.token_bytes for piece in pieces]),
        )
        if not chat.learned.any():
            return Problem("template", "no token is the assistant's")
        if chat.learned[0]:
            return Problem(
                "unpredicted", "the rendering begins with the assistant's text: nothing predicts it"
            )
        return chat

    def _find_end_of_turn(self) -> int:
        segments = self._template.segments(_PROBE.messages)
        [chat] = self.encode([_PROBE])
        if isinstance(chat, Problem):
            raise DataError(f"The chat template can't be used: {chat.why}.")
        last = chat.ids[chat.learned][-1:]
        if not self._segments.is_special(last).all():
            words = "".join(segment.text for segment in segments if segment.learned)
            raise DataError(
                f"The chat template's assistant turn ends in {words[-20:]!r}, which isn't a special "
                "token, so a model could never learn to stop; put the token that ends a turn "
                "inside {% generation %}."
            )
        return int(last[0])


def _left_out(conversation: Conversation) -> set[int]:
    """Assistant's turns from which nothing is learned: those given, and those of weight 0."""
    spoken = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
    return {
        turn
        for turn, index in enumerate(spoken)
        if index < conversation.given or conversation.messages[index].get("weight") == 0
    }


def _nothing_learned(conversation: Conversation, train_on: Literal["all", "last"]) -> str:
    """Say which turns are left out, and what would change that."""
    turns = sum(message["role"] == "assistant" for message in conversation.messages)
    if train_on == "last" and len(_left_out(conversation)) < turns:
        return (
            "the assistant's last turn has weight 0, and data.train_on=last learns from no other; "
            "use data.train_on=all, or give that turn another weight"
        )
    return "all of the assistant's turns have weight 0; give one another, or leave the record out"


def _without_reserved(messages: Sequence[Mapping[str, Any]], spoken: int) -> list[dict[str, Any]]:
    """Messages without nulls, as transformers renders them; the text of turns whose tokens are at
    hand may have decoded to anything."""
    cleaned = []
    turn = 0
    for message in messages:
        copy = {key: value for key, value in message.items() if value is not None}
        if copy.get("role") == "assistant":
            if turn < spoken and isinstance(copy.get("content"), str):
                copy["content"] = RESERVED.sub("\ufffd", copy["content"])
            turn += 1
        cleaned.append(copy)
    return cleaned


def _within(segments: Sequence[Segment], number: int, spoken: int) -> bool:
    """Whether a segment stands between two of one turn that is replaced as a whole."""
    before = {segment.turn for segment in segments[:number] if segment.turn is not None}
    after = {segment.turn for segment in segments[number + 1 :]}
    return any(turn in after for turn in before if turn < spoken)
