"""A conversation with a model: what was said is remembered, and each answer is streamed.

What the model said is given back to it as the very tokens that it drew: decoding them and encoding the
text again could give others, which it never wrote.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing
from itertools import count
from typing import Any

import torch

from raymill.data.messages.encode import ChatEncoder
from raymill.errors import DataError, RaymillError
from raymill.generate.decoding import decode_stream
from raymill.generate.sampling import sample
from raymill.model.shape import NO_LIMIT, context_length

HELP = "type a message; /reset starts over; an empty line or Ctrl-D ends; Ctrl-C stops an answer"


def print_note(text: str) -> None:
    """Tell a person something that isn't part of the answer."""
    print(f"({text})", file=sys.stderr)


class Conversation:
    """Turns of a user and a model, which always fit into the model's positions.

    `tokenizer`: has `decode(ids, skip_special_tokens=True)`; `stop_ids`: end an answer beside the
    encoder's own; `note`: is told when turns are forgotten.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
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
        self._turns: list[dict[str, str]] = []  # the user's and the model's by turns
        self.spoken: list[list[int]] = []  # the model's turns as tokens, each with its end

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the model is told before the next question."""
        return [*self._system, *self._turns]

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._turns, self.spoken = [], []

    def ask(self, text: str, seed: int) -> Generator[str]:
        """The answer as it is drawn, then remembered; closed early, as much of it as there is.

        The oldest questions and answers are forgotten until `max_new_tokens` (or as many as half of
        the model's positions) fit behind the rest; a question that leaves less room alone gets a
        shorter answer.

        Raises:
            DataError: the text can't be encoded, or doesn't fit into the model's positions.
        """
        question = {"role": "user", "content": _checked(text)}
        prompt = self._fitting_prompt(question)
        drawn: list[int] = []
        try:
            yield from decode_stream(self._tokenizer, self._until_stop(prompt, drawn, seed))
        finally:  # also when interrupted
            if drawn:
                self._remember(question, drawn)

    def _fitting_prompt(self, question: dict[str, str]) -> list[int]:
        # An answer may be allowed more than the model has: that mustn't cost it all its memory.
        reserved = min(self._max_new_tokens, self._positions // 2)
        for forgotten in range(len(self.spoken) + 1):
            turns, spoken = self._turns[2 * forgotten :], self.spoken[forgotten:]
            prompt = self._prompt_ids([*self._system, *turns, question], spoken)
            if len(prompt) + reserved <= self._positions:
                break
        if len(prompt) >= self._positions:
            raise DataError(
                f"The message is too long: with what surrounds it, it has {len(prompt)} tokens, and "
                f"the model has {self._positions} positions for it and the answer."
            )
        self._turns, self.spoken = turns, spoken
        if forgotten:
            what = "the oldest question and its answer"
            what = what if forgotten == 1 else f"the {forgotten} oldest questions and their answers"
            self._note(f"the model has {self._positions} positions: it no longer sees {what}")
        return prompt

    def _prompt_ids(self, messages: list[dict[str, str]], spoken: list[list[int]]) -> list[int]:
        try:
            return self._encoder.prompt_ids(messages, spoken=spoken)
        except DataError:
            # Some templates rewrite earlier turns (they leave out the thinking, say), where no turn
            # can be put in as it was spoken; then the template has its way.
            return self._encoder.prompt_ids(messages)

    def _until_stop(self, prompt: list[int], drawn: list[int], seed: int) -> Iterator[int]:
        """The answer's tokens without the one that ends it; `drawn` also gets that one."""
        tokens = sample(
            self._model,
            prompt,
            max_new_tokens=min(self._max_new_tokens, self._positions - len(prompt)),
            temperature=self._temperature,
            top_p=self._top_p,
            generator=torch.Generator().manual_seed(seed),
            end_of_text_id=None,
        )
        for token in tokens:
            drawn.append(token)
            if token in self._stop_ids:
                return
            yield token

    def _remember(self, question: dict[str, str], drawn: list[int]) -> None:
        # An answer that was cut, or ended with the text, still ends its turn for what follows.
        end = self._encoder.end_of_turn_id
        body = drawn[:-1] if drawn[-1] in self._stop_ids else drawn
        self._turns += [question, self._encoder.message_of(body)]
        self.spoken.append([*body, end])


def _checked(text: str) -> str:
    """Text from a terminal or a command line may hold bytes that aren't UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"The message isn't UTF-8, at character {error.start + 1}.") from error
    return text


def print_answer(conversation: Conversation, text: str, seed: int) -> None:
    """Stream one answer, alone, to standard output."""
    with closing(conversation.ask(text, seed)) as pieces:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")


def converse(conversation: Conversation, seed: int) -> None:
    """Turn after turn with a person at a terminal; turn i draws with `seed` + i."""
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
