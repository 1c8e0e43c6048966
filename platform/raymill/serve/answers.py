"""One answer as text: decoded as its tokens are drawn, ended by stop strings, with log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raymill.generate.engine.request import DrawnToken, Finish, TokenLogProb
from raymill.serve.model_text import ModelText
from raymill.serve.runner import TokenStream


@dataclass
class Piece:
    """Text that has become certain, and the tokens that begin in it, each with its place in the answer."""

    text: str
    tokens: Sequence[DrawnToken]
    offsets: Sequence[int]
    finish: Finish | None


@dataclass
class Usage:
    """Tokens of a request: of its prompts, of all answers, and of the prompts those that were in a cache."""

    prompt: int
    completion: int = 0
    cached: int = 0

    def body(self) -> dict[str, object]:
        """Return OpenAI's form."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass
class ChoiceReader:
    """Reader of one stream. `stop_ids`: tokens that end the answer, and have no text.

    `pieces`: how many were read; `prompt`: the log-probabilities of the prompt's tokens, once the first
    piece was read, if they were asked for.
    """

    index: int
    stream: TokenStream
    text: ModelText
    prompt_ids: Sequence[int]
    stop_ids: frozenset[int]
    stops: Sequence[str]
    # Special tokens that are spelled out, as marks of tool calls may be.
    shown: frozenset[int]
    usage: Usage
    # Tokens that the client asked for; an engine draws at least one.
    limit: int
    # One of several answers to a prompt counts the prompt.
    counts_prompt: bool
    prompt: Sequence[TokenLogProb] = ()
    pieces: int = 0
    _tokens: list[DrawnToken] = field(default_factory=list)
    _shown: int = 0
    _count: int = 0

    def __post_init__(self) -> None:
        self._answer = self.text.answer_text(self.prompt_ids, self.stops, self.shown)

    async def read(self) -> Piece:
        """Wait for a piece of the answer. The last one has `finish`.

        Raises:
            RaymillError: the answer won't be completed.
        """
        drawn = await self.stream.read()
        self.prompt = drawn.prompt or self.prompt
        if self.counts_prompt:
            self.usage.cached += drawn.reused or 0
        pieces = []
        for token in drawn.tokens[: self.limit - self._count]:
            if self._answer.stopped:
                break
            self._count += 1
            self.usage.completion += 1
            if token.id not in self.stop_ids:
                self._tokens.append(token)
                pieces.append(self._answer.push(token.id))
        finish = drawn.finish
        if self._answer.stopped:
            finish = "stop"
            self.stream.close()
        elif finish is not None:
            finish = finish if self.limit else "length"
            pieces.append(self._answer.finish())
        return self._piece("".join(pieces), finish)

    def _piece(self, text: str, finish: Finish | None) -> Piece:
        """Return a piece with the tokens that begin in the text returned so far."""
        begun = self._answer.tokens_begun
        if finish is not None and not self._answer.stopped:
            begun = len(self._tokens)
        shown, self._shown = self._shown, max(self._shown, begun)
        chosen = slice(shown, self._shown)
        self.pieces += 1
        return Piece(text, self._tokens[chosen], self._answer.offsets[chosen], finish)
