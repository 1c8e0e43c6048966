"""A conversation with a model: earlier turns are remembered, and each answer is streamed.

The model's earlier turns are fed back as the very tokens that it drew: decoding them and encoding the text
again could give different tokens, which the model never wrote.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING

from raymill.data.messages.encode import ChatEncoder
from raymill.errors import DataError, RaymillError
from raymill.generate.decoding import StreamTokenizer, decode_stream
from raymill.generate.sampling import sample
from raymill.model.shape import NO_LIMIT, context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELP = "type a message; /reset starts over; an empty line or Ctrl-D ends; Ctrl-C stops an answer"


def print_note(text: str) -> None:
    """Print a note that isn't part of the answer."""
    print(f"({text})", file=sys.stderr)


class ChatSession:
    """Turns of a user and a model, which always fit into the model's positions.

    `stop_ids`: tokens that end an answer, in addition to the encoder's; `note`: called when turns are dropped.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: StreamTokenizer,
        encoder: ChatEncoder,
        *,
        system: str | None,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        stop_ids: Collection[int] = (),
        note: Callable[[str], None] = print_note,
    ) -> None:
        self._model, self._tokenizer, self._encoder = model, tokenizer, encoder
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._max_new_tokens, self._temperature, self._top_p = max_new_tokens, temperature, top_p
        self._stop_ids = encoder.stop_ids | frozenset(stop_ids)
        self._note = note
        self._positions = context_length(model.config) or NO_LIMIT
        # Alternating messages of the user and the model.
        self._turns: list[dict[str, str]] = []
        # The model's turns as tokens, each with its end of turn.
        self.spoken: list[list[int]] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """Messages that precede the next question."""
        return [*self._system, *self._turns]

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._turns, self.spoken = [], []

    def ask(self, text: str, seed: int) -> Generator[str]:
        """Yield the answer as it is drawn, then remember it; if closed early, remember the part drawn so far.

        The oldest questions and answers are dropped until `max_new_tokens` (or half of the model's
        positions, if that is less) fit after the rest. A question that leaves fewer positions gets a
        shorter answer.

        Raises:
            DataError: the text can't be encoded, or doesn't fit into the model's positions.
        """
        try:
            # Text from a terminal or a command line may hold bytes that aren't UTF-8.
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"The message isn't UTF-8, at character {error.start + 1}.") from error
        question = {"role": "user", "content": text}
        prompt = self._fitting_prompt(question)
        drawn: list[int] = []
        try:
            yield from decode_stream(self._tokenizer, self._until_stop(prompt, drawn, seed))
        finally:
            # Also when interrupted: the user has seen the part drawn so far.
            if drawn:
                self._remember(question, drawn)

    def _fitting_prompt(self, question: dict[str, str]) -> list[int]:
        """Return the prompt of a question after as many earlier turns as fit, and drop the others."""
        # Capped, because max_new_tokens may exceed the model's positions, and every turn would be dropped.
        reserved = min(self._max_new_tokens, self._positions // 2)
        for dropped in range(len(self.spoken) + 1):
            turns, spoken = self._turns[2 * dropped :], self.spoken[dropped:]
            prompt = self._prompt_ids([*self._system, *turns, question], spoken)
            if len(prompt) + reserved <= self._positions:
                break
        if len(prompt) >= self._positions:
            raise DataError(
                f"The message is too long: with the template's tokens it has {len(prompt)} tokens, and "
                f"the model has {self._positions} positions for it and the answer."
            )
        self._turns, self.spoken = turns, spoken
        if dropped:
            what = "the oldest question and its answer"
            what = what if dropped == 1 else f"the {dropped} oldest questions and their answers"
            self._note(f"the model has {self._positions} positions: it no longer sees {what}")
        return prompt

    def _prompt_ids(self, messages: list[dict[str, str]], spoken: list[list[int]]) -> list[int]:
        try:
            return self._encoder.prompt_ids(messages, generated=spoken)
        except DataError:
            # Some templates rewrite earlier turns (by dropping the thinking, say), so that the drawn tokens
            # can't be inserted; then the template's own rendering is used.
            return self._encoder.prompt_ids(messages)

    def _until_stop(self, prompt: list[int], drawn: list[int], seed: int) -> Iterator[int]:
        """Yield the answer's tokens without the stop token; append all of them to `drawn`."""
        tokens = sample(
            self._model,
            prompt,
            max_new_tokens=min(self._max_new_tokens, self._positions - len(prompt)),
            temperature=self._temperature,
            top_p=self._top_p,
            seed=seed,
            end_of_text_id=None,
        )
        for token in tokens:
            drawn.append(token)
            if token in self._stop_ids:
                return
            yield token

    def _remember(self, question: dict[str, str], drawn: list[int]) -> None:
        # An answer that was cut, or ended with the end of text, still needs its end of turn before the next
        # one.
        end = self._encoder.end_of_turn_id
        body = drawn[:-1] if drawn[-1] in self._stop_ids else drawn
        self._turns += [question, self._encoder.message_of(body)]
        self.spoken.append([*body, end])


def print_answer(conversation: ChatSession, text: str, seed: int) -> None:
    """Stream an answer, and nothing else, to standard output."""
    with closing(conversation.ask(text, seed)) as pieces:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")


def converse(conversation: ChatSession, seed: int) -> None:
    """Converse with a user at a terminal; turn i draws with `seed` + i."""
    print(HELP, file=sys.stderr)
    for number in count():
        try:
            line = input("you> ")
        except EOFError:
            print()
            return
        if not line.strip():
            return
        if line.strip() == "/reset":
            conversation.reset()
            continue
        try:
            print_answer(conversation, line, seed + number)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        except RaymillError as error:
            print(f"error: {error}", file=sys.stderr)
