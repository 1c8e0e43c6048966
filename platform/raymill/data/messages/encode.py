"""Conversations to token ids with a mask of what is learned: the assistant's words and the token
that ends its turn.

The prompt at generation is encoded by the same code, with the tokens that were really generated in
their places, so a model is asked in the form in which it was trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from raymill.data.messages.conversation import Conversation, Problem
from raymill.data.messages.guard import RESERVED
from raymill.data.messages.pieces import Piece, SegmentEncoder, special_ids
from raymill.data.messages.probes import ANSWER, EXCHANGES, calling
from raymill.data.messages.problems import Refused
from raymill.data.messages.template import ChatTemplate, Segment, UnaskedError
from raymill.data.messages.thinking import Thinking, check_thought, thought_in, without_thinking
from raymill.data.messages.turns import TurnForm, turn_form
from raymill.data.messages.written import ungiven, unwritten
from raymill.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ChatEncoder", "EncodedChat", "special_ids"]

TrainOn = Literal["all", "last"]

_OPENING = re.compile(r"\s*<think>")


@dataclass(frozen=True)
class EncodedChat:
    """A conversation's ids [n], whether each is learned [n], the UTF-8 bytes of text behind each [n]
    (special tokens: 0), and whether each was written by the assistant in a turn that is learned, its
    thinking included where that isn't learned [n]. The first token is never learned: nothing
    predicts it."""

    ids: NDArray[np.uint32]
    learned: NDArray[np.bool_]
    token_bytes: NDArray[np.uint32]
    spoken: NDArray[np.bool_]


class _LeftOutError(DataError):
    """The template doesn't write something that a message holds."""


class ChatEncoder:
    """Encodes conversations with one tokenizer and one template.

    `end_of_turn_id`: the special token that ends the assistant's turns; `call_end_ids`: those that end its
    turns with calls of tools, where these end otherwise; `stop_ids`: all of them, and `end_of_text_id` where
    that is known. The tokenizer is copied, not changed.

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
        self.call_end_ids = self._find_call_ends()
        known = () if end_of_text_id is None else (end_of_text_id,)
        self.stop_ids = frozenset((self.end_of_turn_id, *self.call_end_ids, *known))

    def encode(
        self,
        conversations: Sequence[Conversation],
        train_on: TrainOn = "all",
        thinking: Thinking = "learn",
    ) -> list[EncodedChat | Problem]:
        """Every conversation encoded, or why it can't be. Segments of all are encoded together.

        `thinking`: what the assistant thought is learned, stands there without being learned, or
        is left out of the messages.

        Causes: `template`, `special_text`, `boundary`, `unpredicted`, `empty`, `no_assistant`.
        """
        rendered = [self._rendered(one, train_on, thinking) for one in conversations]
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
        asked = [guard.broken_message(one) for one in _without_reserved(messages, len(spoken))]
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

    def message_of(self, ids: Sequence[int]) -> dict[str, str]:
        """The assistant's message of a turn that was generated, from its tokens without their end.

        Its thinking is told apart where the turn has the form in which the template writes it.
        """
        text = self._segments.decode(ids)
        message = self._turn_form.read(text)
        split = self._segments.guard.split
        return {key: "".join(split(value)[::2]) for key, value in message.items()}

    @cached_property
    def _turn_form(self) -> TurnForm:
        return turn_form(self._template)

    def _rendered(
        self, conversation: Conversation, train_on: TrainOn, thinking: Thinking
    ) -> list[Segment] | Problem:
        try:
            return self._checked(conversation, train_on, thinking)
        except Refused as refused:
            return refused.problem
        except (UnaskedError, _LeftOutError) as error:
            advice = self._advice(conversation, train_on, thinking)
            return Problem("template", f"{error}; {advice}")
        except DataError as error:
            return Problem("template", str(error))

    def _checked(
        self, conversation: Conversation, train_on: TrainOn, thinking: Thinking
    ) -> list[Segment]:
        """The segments of a conversation, of which the learned hold everything that the assistant
        wrote in their turns."""
        messages, tools = self._broken(conversation, thinking)
        places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        left_out = _left_out(conversation)
        wanted = list(range(len(places)))[-1 if train_on == "last" else 0 :]
        wanted = [turn for turn in wanted if turn not in left_out]
        if not wanted:
            raise Refused("no_assistant", _nothing_learned(conversation, train_on))
        segments = self._template.segments(messages, tools, train_on=wanted)
        for turn in wanted:
            if thinking == "mask":
                check_thought(messages[places[turn]], places[turn] + 1)
            text = "".join(one.text for one in segments if one.turn == turn)
            self._check_turn(messages[places[turn]], text, turn, places[turn])
        whole = self._segments.guard.plain("".join(one.text for one in segments))
        missing = ungiven(messages[: places[wanted[-1]]], tools, whole)
        if missing is not None:
            raise _LeftOutError(f"The chat template leaves out {missing}")
        if thinking == "mask":
            begin = (self._turn_form.thinking or ("", ""))[0]
            segments = [
                one
                if one.turn is None
                else _masked(one, thought_in(messages[places[one.turn]]), begin)
                for one in segments
            ]
        return segments

    def _check_turn(self, message: Mapping[str, Any], text: str, turn: int, index: int) -> None:
        """Refuse a turn whose text lacks something of the message, or an end."""
        guard = self._segments.guard
        where = f"assistant turn {turn + 1} (message {index + 1})"
        missing = unwritten(message, guard.plain(text))
        if missing is not None:
            raise _LeftOutError(f"The chat template leaves out {missing} in {where}")
        if guard.end_of_last(text) != len(text):
            raise DataError(
                f"The chat template's {where} ends in {text[-20:]!r}, which isn't a special token, so "
                "a model could never learn to stop; put the token that ends a turn inside "
                "{% generation %}."
            )

    def _broken(
        self, conversation: Conversation, thinking: Thinking
    ) -> tuple[list[dict[str, Any]], Any]:
        """Messages, and tools, that spell no special token."""
        guard = self._segments.guard
        messages: Sequence[Mapping[str, Any]] = conversation.messages
        if thinking == "drop":
            for number, message in enumerate(messages, 1):
                check_thought(message, number)
            messages = without_thinking(messages)
            for number, message in enumerate(messages, 1):
                if not message["content"].strip() and not message.get("tool_calls"):
                    why = f"message {number}: nothing is left of the assistant's turn but thinking"
                    raise Refused("empty", f"{why}, which data.thinking=drop leaves out")
        try:
            return [guard.broken_message(one) for one in messages], guard.broken(conversation.tools)
        except DataError as error:
            raise Refused("special_text", str(error)) from error

    def _advice(self, conversation: Conversation, train_on: TrainOn, thinking: Thinking) -> str:
        """Return what to do about a conversation that the template doesn't write: what was tried and helps."""
        helping = ""
        ways: list[tuple[TrainOn, Thinking, str]] = [
            ("last", thinking, "data.train_on=last"),
            (train_on, "drop", "data.thinking=drop"),
            ("last", "drop", "data.train_on=last and data.thinking=drop"),
        ]
        for learned, thoughts, setting in ways:
            try:
                self._checked(conversation, learned, thoughts)
            except (DataError, Refused):
                continue
            helping = f"set {setting}, or "
            break
        return f"{helping}use a template that writes it, as data.template=chatml does."

    def _assembled(
        self, segments: Sequence[Segment], pieces: Sequence[Piece]
    ) -> EncodedChat | Problem:
        lengths = [len(piece.ids) for piece in pieces]
        spoken = np.repeat([segment.learned for segment in segments], lengths)
        thought = np.concatenate(
            [self._segments.within(*pair) for pair in zip(segments, pieces, strict=True)]
        )
        chat = EncodedChat(
            np.concatenate([piece.ids for piece in pieces]),
            spoken & ~thought,
            np.concatenate([piece.token_bytes for piece in pieces]),
            spoken,
        )
        if not chat.learned.any():
            return Problem("template", "no token is the assistant's")
        if chat.spoken[0]:
            return Problem(
                "unpredicted", "the rendering begins with the assistant's text: nothing predicts it"
            )
        return chat

    def _find_end_of_turn(self) -> int:
        for probe in EXCHANGES:
            try:
                segments = self._checked(probe, "all", "learn")
            except (UnaskedError, _LeftOutError) as error:
                unusable = error
                continue
            [chat] = self.encode([probe])
            if isinstance(chat, Problem):
                raise DataError(f"The chat template can't be used: {chat.why}.")
            last = chat.ids[chat.learned][-1:]
            if self._segments.is_special(last).all():
                return int(last[0])
            words = "".join(segment.text for segment in segments if segment.learned)
            raise DataError(f"The tokenizer makes no special token of the end of {words!r}.")
        return self._end_of_answer(unusable)

    def _find_call_ends(self) -> tuple[int, ...]:
        """The end of a turn with calls whose results follow, and of one that is the last; with two calls in it
        where the template takes them, since a token that ends each of them doesn't end the turn."""
        found: dict[int, None] = {}
        for answered in (True, False):
            turn = self._calling_turn(2, answered) or self._calling_turn(1, answered)
            if turn and turn[-1] not in (self.end_of_turn_id, *turn[:-1]):
                found[turn[-1]] = None
        return tuple(found)

    def _calling_turn(self, count: int, answered: bool) -> list[int]:
        """Ids of a turn with that many calls, last or `answered`; none where the template doesn't write it."""
        try:
            segments = self._checked(calling(count, answered), "all", "learn")
        except (DataError, Refused):
            return []
        [pieces] = self._segments.encode([segments])
        if isinstance(pieces, Problem):
            return []
        mine = [p.ids for one, p in zip(segments, pieces, strict=True) if one.turn == 0]
        return [] if not mine else np.concatenate(mine).tolist()

    def _end_of_answer(self, unusable: DataError) -> int:
        """The special token that follows an answer, in a template that can be asked and not learned."""
        answer = str(ANSWER["content"])
        _, found, behind = self._template.text(EXCHANGES[0].messages).rpartition(answer)
        texts = self._segments.guard.split(behind)
        if not found or len(texts) == 1:
            raise unusable
        # Several may end a turn together, without text between them.
        last = next((n for n in range(2, len(texts), 2) if texts[n]), len(texts) - 1) - 1
        return self._segments.special_ids[texts[last]]


def _masked(segment: Segment, thought: str, begin: str) -> Segment:
    """A segment of which a thought isn't learned. `begin`: what the template writes before one."""
    if not thought or not segment.learned:
        return segment
    # What stands before a thought may spell the same: `think`, or the name of a channel.
    opened = _OPENING.match(segment.text)
    done = len(begin) if segment.text.startswith(begin) else opened.end() if opened else 0
    # As words of their own, if they are: a short thought may also be found within another word.
    found = re.compile(rf"(?<!\w){re.escape(thought)}(?!\w)").search(segment.text, done)
    start = found.start() if found else segment.text.find(thought, done)
    if start < 0:
        raise _LeftOutError(f"The chat template changes a thought, {thought[:40]!r}")
    return replace(segment, thought=(start, start + len(thought)))


def _left_out(conversation: Conversation) -> set[int]:
    """Assistant's turns from which nothing is learned: those given, and those of weight 0."""
    spoken = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
    return {
        turn
        for turn, index in enumerate(spoken)
        if index < conversation.given or conversation.messages[index].get("weight") == 0
    }


def _nothing_learned(conversation: Conversation, train_on: TrainOn) -> str:
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
            for key in ("content", "reasoning_content") if turn < spoken else ():
                if isinstance(copy.get(key), str):
                    copy[key] = RESERVED.sub("\ufffd", copy[key])
            turn += 1
        cleaned.append(copy)
    return cleaned


def _within(segments: Sequence[Segment], number: int, spoken: int) -> bool:
    """Whether a segment stands between two of one turn that is replaced as a whole."""
    before = {segment.turn for segment in segments[:number] if segment.turn is not None}
    after = {segment.turn for segment in segments[number + 1 :]}
    return any(turn in after for turn in before if turn < spoken)
