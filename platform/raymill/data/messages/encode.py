"""Encode conversations as token ids with a mask of the learned ones: the assistant's text and end of turn.

Prompts for generation are encoded by the same code, with generated turns as the tokens that were generated,
so a model is prompted in the form in which it was trained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from raymill.data.messages.completeness import missing_from_context, missing_from_turn
from raymill.data.messages.conversation import Conversation, Problem
from raymill.data.messages.guard import without_reserved
from raymill.data.messages.keys import JsonObject, Record
from raymill.data.messages.problems import Refused
from raymill.data.messages.segment_encoder import EncodedSegment, SegmentEncoder, special_ids
from raymill.data.messages.template import ChatTemplate, PromptMismatchError, RenderedSegment
from raymill.data.messages.template_probes import (
    ANSWER,
    PROBES,
    TurnParser,
    build_turn_parser,
    tool_call_probe,
)  # fmt: skip
from raymill.data.messages.thinking import Thinking, check_thought, thought_in, without_thinking
from raymill.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ChatEncoder", "EncodedChat", "special_ids"]

TrainOn = Literal["all", "last"]
_OPENING = re.compile(r"\s*<think>")


@dataclass(frozen=True)
class EncodedChat:
    """A conversation's token ids [n], with three properties of each token.

    `learned` [n] tells whether it is learned; `token_bytes` [n] counts the UTF-8 bytes of its text (0 for
    special tokens); `by_assistant` [n] tells whether the assistant wrote it in a learned turn, thinking
    included where that isn't learned. The first token is never learned: no token precedes it, so nothing
    predicts it.
    """

    ids: NDArray[np.uint32]
    learned: NDArray[np.bool_]
    token_bytes: NDArray[np.uint32]
    by_assistant: NDArray[np.bool_]


class _LeftOutError(DataError):
    """The template leaves out a part of a message."""


class ChatEncoder:
    """Encodes conversations with one tokenizer and one template.

    `end_of_turn_id` is the special token that ends the assistant's turns; `call_end_ids` are those that end
    its turns with tool calls, where they end differently; `stop_ids` are all of these, and `end_of_text_id`
    if it is known. The tokenizer is copied, not changed.

    Raises:
        DataError: the template fails on a user's and an assistant's message, or the assistant's turn doesn't
        end with a learned special token, so that a model could never learn to stop.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, end_of_text_id: int | None = None
    ) -> None:
        self._segments = SegmentEncoder(tokenizer)
        self.special_ids = self._segments.special_ids
        self.template = template.with_special_tokens(tuple(self.special_ids))
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
        """Encode each conversation, or return why it can't be encoded; all segments are encoded in one batch.

        `thinking`: the assistant's thinking is learned, or masked (in the text, but not learned), or dropped
        from the messages.

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
            tokens = next(encoded)
            results.append(
                tokens if isinstance(tokens, Problem) else self._assembled(segments, tokens)
            )
        return results

    def prompt_ids(
        self,
        messages: Sequence[Record],
        tools: Sequence[Record] | None = None,
        generated: Sequence[Sequence[int]] = (),
    ) -> list[int]:
        """Return the ids up to and including the generation prompt for the assistant's next turn.

        `generated[i]` are the tokens that were generated as the assistant's turn i, its end included; they
        replace that turn as they are. Special tokens that other messages spell are encoded as text.

        Raises:
            DataError: the template fails, or a generated turn can't be located in its rendering; a message
            contains a noncharacter (U+FDD0 to U+FDEF).
        """
        guard = self._segments.guard
        count = len(generated)
        escaped = [guard.escaped_message(one) for one in without_reserved(messages, count)]
        segments = self.template.prompt(escaped, guard.escaped(tools), turns=count)
        [encoded] = self._segments.encode([segments])
        if isinstance(encoded, Problem):
            raise DataError(f"The conversation can't be encoded: {encoded.why}.")
        located = {segment.turn for segment in segments}
        missing = [turn for turn in range(count) if turn not in located]
        if missing:
            raise DataError(
                f"There are generated tokens for turn {missing[0] + 1}, which the messages don't have."
            )
        ids: list[int] = []
        for number, (segment, tokens) in enumerate(zip(segments, encoded, strict=True)):
            turn = segment.turn
            if turn is None or turn >= count:
                if not _within_turn(segments, number, count):
                    ids += tokens.ids.tolist()
            elif all(earlier.turn != turn for earlier in segments[:number]):
                ids += generated[turn]
        return ids

    def message_of(self, ids: Sequence[int]) -> dict[str, str]:
        """Return the assistant's message of a generated turn, from its tokens without the end of the turn.

        Thinking is separated where the turn has the form in which the template writes it.
        """
        text = self._segments.decode(ids)
        message = self.turn_parser.read(text)
        split = self._segments.guard.split
        return {key: "".join(split(value)[::2]) for key, value in message.items()}

    @cached_property
    def turn_parser(self) -> TurnParser:
        """Parser of generated turns."""
        return build_turn_parser(self.template)

    def _rendered(
        self, conversation: Conversation, train_on: TrainOn, thinking: Thinking
    ) -> list[RenderedSegment] | Problem:
        try:
            return self._checked(conversation, train_on, thinking)
        except Refused as refused:
            return refused.problem
        except (PromptMismatchError, _LeftOutError) as error:
            advice = self._advice(conversation, train_on, thinking)
            return Problem("template", f"{error}; {advice}")
        except DataError as error:
            return Problem("template", str(error))

    def _checked(
        self, conversation: Conversation, train_on: TrainOn, thinking: Thinking
    ) -> list[RenderedSegment]:
        """Render a conversation; the learned segments hold all that the messages of their turns hold."""
        messages, tools = self._escaped(conversation, thinking)
        indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        left_out = _left_out(conversation)
        wanted = list(range(len(indices)))[-1 if train_on == "last" else 0 :]
        wanted = [turn for turn in wanted if turn not in left_out]
        if not wanted:
            raise Refused("no_assistant", _nothing_learned(conversation, train_on))
        segments = self.template.segments(messages, tools, train_on=wanted)
        for turn in wanted:
            if thinking == "mask":
                check_thought(messages[indices[turn]], indices[turn] + 1)
            text = "".join(one.text for one in segments if one.turn == turn)
            self._check_turn(messages[indices[turn]], text, turn, indices[turn])
        text = self._segments.guard.plain("".join(one.text for one in segments))
        missing = missing_from_context(messages[: indices[wanted[-1]]], tools, text)
        if missing is not None:
            raise _LeftOutError(f"The chat template leaves out {missing}")
        if thinking == "mask":
            begin = (self.turn_parser.thinking or ("", ""))[0]
            segments = [
                one
                if one.turn is None
                else _masked(one, thought_in(messages[indices[one.turn]]), begin)
                for one in segments
            ]
        return segments

    def _check_turn(self, message: Record, text: str, turn: int, index: int) -> None:
        """Refuse a turn whose text lacks a part of the message, or an end of turn."""
        guard = self._segments.guard
        where = f"assistant turn {turn + 1} (message {index + 1})"
        missing = missing_from_turn(message, guard.plain(text))
        if missing is not None:
            raise _LeftOutError(f"The chat template leaves out {missing} in {where}")
        if guard.end_of_last(text) != len(text):
            raise DataError(
                f"The chat template's {where} ends in {text[-20:]!r}, which isn't a special token, so "
                "a model could never learn to stop; put the token that ends a turn inside "
                "{% generation %}."
            )

    def _escaped(
        self, conversation: Conversation, thinking: Thinking
    ) -> tuple[list[JsonObject], Any]:
        """Return messages and tools that spell no special token, without thinking where that is dropped."""
        guard = self._segments.guard
        messages: Sequence[Record] = conversation.messages
        if thinking == "drop":
            for number, message in enumerate(messages, 1):
                check_thought(message, number)
            messages = without_thinking(messages)
            for number, message in enumerate(messages, 1):
                if not message["content"].strip() and not message.get("tool_calls"):
                    why = f"message {number}: nothing is left of the assistant's turn but thinking"
                    raise Refused("empty", f"{why}, which data.thinking=drop leaves out")
        try:
            escaped = [guard.escaped_message(one) for one in messages]
            return escaped, guard.escaped(conversation.tools)
        except DataError as error:
            raise Refused("special_text", str(error)) from error

    def _advice(self, conversation: Conversation, train_on: TrainOn, thinking: Thinking) -> str:
        """Return advice on a conversation that the template can't write: settings that were tried and help."""
        remedy = ""
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
            remedy = f"set {setting}, or "
            break
        return f"{remedy}use a template that writes it, as data.template=chatml does."

    def _assembled(
        self, segments: Sequence[RenderedSegment], encoded: Sequence[EncodedSegment]
    ) -> EncodedChat | Problem:
        lengths = [len(tokens.ids) for tokens in encoded]
        by_assistant = np.repeat([segment.learned for segment in segments], lengths)
        thought = np.concatenate(
            [self._segments.within_thought(*pair) for pair in zip(segments, encoded, strict=True)]
        )
        chat = EncodedChat(
            np.concatenate([tokens.ids for tokens in encoded]),
            by_assistant & ~thought,
            np.concatenate([tokens.token_bytes for tokens in encoded]),
            by_assistant,
        )
        if not chat.learned.any():
            return Problem("template", "no token is the assistant's")
        if chat.by_assistant[0]:
            return Problem(
                "unpredicted",
                "the rendering begins with the assistant's text, which nothing predicts",
            )
        return chat

    def _find_end_of_turn(self) -> int:
        for probe in PROBES:
            try:
                segments = self._checked(probe, "all", "learn")
            except (PromptMismatchError, _LeftOutError) as error:
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
        """Return the tokens that end a turn with tool calls, followed by results or as the last turn.

        The turn has two calls where the template takes them: a token that ends each call doesn't end the turn.
        """
        ends: dict[int, None] = {}
        for answered in (True, False):
            turn = self._calling_turn(2, answered) or self._calling_turn(1, answered)
            if turn and turn[-1] not in (self.end_of_turn_id, *turn[:-1]):
                ends[turn[-1]] = None
        return tuple(ends)

    def _calling_turn(self, count: int, answered: bool) -> list[int]:
        """Return the ids of a turn with that many calls, or none if the template can't write it."""
        try:
            segments = self._checked(tool_call_probe(count, answered), "all", "learn")
        except (DataError, Refused):
            return []
        [encoded] = self._segments.encode([segments])
        if isinstance(encoded, Problem):
            return []
        ids = [
            tokens.ids
            for segment, tokens in zip(segments, encoded, strict=True)
            if segment.turn == 0
        ]
        return np.concatenate(ids).tolist() if ids else []

    def _end_of_answer(self, unusable: DataError) -> int:
        """Return the special token behind an answer, for a template that can only be used for generation."""
        answer = str(ANSWER["content"])
        _, separator, behind = self.template.text(PROBES[0].messages).rpartition(answer)
        texts = self._segments.guard.split(behind)
        if not separator or len(texts) == 1:
            raise unusable
        # Several special tokens may end a turn together: the last before any further text counts.
        last = next((n for n in range(2, len(texts), 2) if texts[n]), len(texts) - 1) - 1
        return self.special_ids[texts[last]]


def _masked(segment: RenderedSegment, thought: str, begin: str) -> RenderedSegment:
    """Return a segment whose thought isn't learned; `begin` is the template's text before a thought."""
    if not thought or not segment.learned:
        return segment
    # The text before a thought may contain the same words: `think`, or the name of a channel.
    opened = _OPENING.match(segment.text)
    done = len(begin) if segment.text.startswith(begin) else opened.end() if opened else 0
    # Whole words are tried first, since a short thought may also occur within another word.
    match = re.compile(rf"(?<!\w){re.escape(thought)}(?!\w)").search(segment.text, done)
    start = match.start() if match else segment.text.find(thought, done)
    if start < 0:
        raise _LeftOutError(f"The chat template changes a thought, {thought[:40]!r}")
    return replace(segment, thought=(start, start + len(thought)))


def _left_out(conversation: Conversation) -> set[int]:
    """Return the assistant's turns that aren't learned: those of the prompt, and those of weight 0."""
    indices = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
    return {
        turn
        for turn, index in enumerate(indices)
        if index < conversation.prompt_length or conversation.messages[index].get("weight") == 0
    }


def _nothing_learned(conversation: Conversation, train_on: TrainOn) -> str:
    """Return which turns aren't learned, and how to change that."""
    turns = sum(message["role"] == "assistant" for message in conversation.messages)
    if train_on == "last" and len(_left_out(conversation)) < turns:
        return (
            "the assistant's last turn has weight 0, and data.train_on=last learns from no other; "
            "use data.train_on=all, or give that turn another weight"
        )
    return "all of the assistant's turns have weight 0; give one another, or leave the record out"


def _within_turn(segments: Sequence[RenderedSegment], number: int, generated: int) -> bool:
    """Tell whether a segment is between two segments of one generated turn, which is replaced as a whole."""
    before = {segment.turn for segment in segments[:number] if segment.turn is not None}
    after = {segment.turn for segment in segments[number + 1 :]}
    return any(turn in after for turn in before if turn < generated)
