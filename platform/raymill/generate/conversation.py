"""A conversation with a model: earlier turns are remembered, and each answer is streamed.

The model's earlier turns are fed back as the very tokens that it drew: decoding them and encoding the text
again could give different tokens, which the model never wrote. An engine that keeps its cache then reads only
what was added since.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raymill.data.messages.encode import ChatEncoder
from raymill.errors import DataError
from raymill.generate.answer_tokens import draw
from raymill.generate.decoding import StreamTokenizer, decode_stream
from raymill.model.shape import NO_LIMIT

if TYPE_CHECKING:
    from raymill.generate.engine.request import DecodingEngine, SamplingParameters


def print_note(text: str) -> None:
    """Print a note that isn't part of the answer."""
    print(f"({text})", file=sys.stderr)


def user_message(text: str) -> dict[str, str]:
    """Return a user's message.

    Raises:
        DataError: the text comes from a terminal or a command line, and isn't UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"The message isn't UTF-8, at character {error.start + 1}.") from error
    return {"role": "user", "content": text}


@dataclass(frozen=True)
class Turn:
    """A question and its answer; `tokens` are those that the model drew, with an end of turn."""

    question: dict[str, str]
    answer: dict[str, str]
    tokens: tuple[int, ...]
    seed: int


class ChatSession:
    """Turns of a user and a model, of which the model sees as many as fit into its positions.

    `engine`: an engine without other requests, which the session steps. `parameters`: of every answer, but for
    the seed; the encoder's stop tokens are added. `note`: called when the model no longer sees a turn.
    """

    def __init__(
        self,
        engine: DecodingEngine,
        tokenizer: StreamTokenizer,
        encoder: ChatEncoder,
        parameters: SamplingParameters,
        *,
        system: str | None = None,
        note: Callable[[str], None] = print_note,
    ) -> None:
        self._engine, self._tokenizer, self._encoder = engine, tokenizer, encoder
        self._parameters = replace(
            parameters, stop_ids=encoder.stop_ids | frozenset(parameters.stop_ids)
        )
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._note = note
        self._positions = engine.positions or NO_LIMIT
        self.turns: list[Turn] = []
        # The number of turns that the model no longer sees.
        self.forgotten = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """All messages so far, forgotten ones too."""
        return self._before(0)

    @property
    def seeds(self) -> list[int]:
        """The seed of each answer."""
        return [turn.seed for turn in self.turns]

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.turns, self.forgotten = [], 0

    def undo(self) -> None:
        """Take back the last question and its answer.

        Raises:
            DataError: there is none.
        """
        if not self.turns:
            raise DataError("There is nothing to take back.")
        self.turns.pop()
        # With fewer turns after them, older ones may fit again.
        self.forgotten = 0

    def ask(self, text: str, seed: int) -> Generator[str]:
        """Yield the answer as it is drawn, then remember it; if closed early, remember the part drawn so far.

        The oldest questions and answers are left out until `max_new_tokens` (or half of the model's
        positions, if that is less) fit after the rest. A question that leaves fewer positions gets a shorter
        answer.

        Raises:
            DataError: the text can't be encoded, or doesn't fit into the model's positions.
        """
        question = user_message(text)
        prompt = self._fitting_prompt(question)
        drawn: list[int] = []
        try:
            yield from decode_stream(self._tokenizer, self._until_stop(prompt, drawn, seed))
        finally:
            # Also when interrupted: the user has seen the part drawn so far.
            if drawn:
                self._remember(question, drawn, seed)

    def _before(self, first: int) -> list[dict[str, str]]:
        """Return the system message and the messages from one turn on."""
        pairs = ((turn.question, turn.answer) for turn in self.turns[first:])
        return [*self._system, *(message for pair in pairs for message in pair)]

    def _fitting_prompt(self, question: dict[str, str]) -> list[int]:
        """Return the prompt of a question after as many earlier turns as fit, and forget the others."""
        # Capped, because max_new_tokens may exceed the model's positions, and every turn would be left out.
        reserved = min(self._parameters.max_new_tokens, self._positions // 2)
        for first in range(self.forgotten, len(self.turns) + 1):
            prompt = self._prompt_ids(question, first)
            if len(prompt) + reserved <= self._positions:
                break
        if len(prompt) >= self._positions:
            raise DataError(
                f"The message is too long: with the template's tokens it has {len(prompt)} tokens, and "
                f"the model has {self._positions} positions for it and the answer."
            )
        if newly := first - self.forgotten:
            what = "the oldest question and its answer"
            what = what if newly == 1 else f"the {newly} oldest questions and their answers"
            self._note(f"the model has {self._positions} positions: it no longer sees {what}")
        self.forgotten = first
        return prompt

    def _prompt_ids(self, question: dict[str, str], first: int) -> list[int]:
        messages = [*self._before(first), question]
        try:
            spoken = [turn.tokens for turn in self.turns[first:]]
            return self._encoder.prompt_ids(messages, generated=spoken)
        except DataError:
            # Some templates rewrite earlier turns (by dropping the thinking, say), so that the drawn tokens
            # can't be inserted; then the template's own rendering is used.
            return self._encoder.prompt_ids(messages)

    def _until_stop(self, prompt: list[int], drawn: list[int], seed: int) -> Iterator[int]:
        """Yield the answer's tokens without the stop token; append all of them to `drawn`."""
        most = min(self._parameters.max_new_tokens, self._positions - len(prompt))
        parameters = replace(self._parameters, seed=seed, max_new_tokens=most)
        for token in draw(self._engine, prompt, parameters):
            drawn.append(token)
            if token in parameters.stop_ids:
                return
            yield token

    def _remember(self, question: dict[str, str], drawn: list[int], seed: int) -> None:
        # An answer that was cut, or ended with the end of text, still needs its end of turn before the next
        # one.
        end = self._encoder.end_of_turn_id
        body = drawn[:-1] if drawn[-1] in self._parameters.stop_ids else drawn
        answer = self._encoder.message_of(body)
        self.turns.append(Turn(question, answer, (*body, end), seed))
