"""Interface of the engines that decode: what is asked for, what comes back, and what an engine does.

An engine takes and returns tokens, never text. It is driven step by step by one thread and starts none
itself, so that the caller decides what else happens between two steps: a server reads its queue, a trainer
does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from raymill.errors import RaymillError

if TYPE_CHECKING:
    import torch

Finish = Literal["stop", "length"]


class RequestError(RaymillError):
    """A request can't be answered by this engine: the prompt is too long, or a parameter isn't supported.

    `parameter`: name of the field of `SamplingParameters` at fault, or "prompt".
    """

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class TokenConstraint(Protocol):
    """Grammar that an answer must follow, with the state of one answer; used for one request only."""

    def allowed(self) -> torch.Tensor:
        """[V] bool, on the CPU: tokens that may come next, and the end of the answer where it may end."""
        ...

    def accept(self, token: int) -> None:
        """Advance by a token that was drawn."""
        ...


@dataclass(frozen=True)
class SamplingParameters:
    """Settings of one answer's draw. The values that are left out change nothing.

    The logits of a token pass, in this order: `logit_bias`, the penalties, the constraint, the temperature,
    `top_k`, `top_p`, `min_p`. Definitions: `repetition_penalty` as in Keskar et al. 2019, over prompt and
    answer; `presence_penalty` and `frequency_penalty` as in OpenAI's API, over the answer; `top_p` as in
    Holtzman et al. 2020; `min_p` as in Nguyen et al. 2024, relative to the likeliest token.

    `max_new_tokens`: including the stop token. `temperature` 0 takes the likeliest token. `top_k` 0: all.
    `seed`: of the answer's own generator; the tokens don't depend on other requests, up to floating point.
    `stop_ids`: tokens that end the answer; the one drawn is its last token.
    `top_log_probs`: None returns no log-probabilities of the model's own distribution (temperature 1, nothing
    left out); 0 those of the tokens drawn; k also the k likeliest tokens'.
    `drawn_log_probs`: return the log-probabilities under the distribution that was drawn from, renormalized,
    which is 0 at temperature 0.
    `prompt_log_probs`: return what `top_log_probs` asks for also for the prompt's tokens but the first.
    `adapter`: name of one of the engine's adapters; None: the model without any.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    top_log_probs: int | None = None
    drawn_log_probs: bool = False
    prompt_log_probs: bool = False
    constraint: TokenConstraint | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class TokenLogProb:
    """Log-probability of a token in its place, and the likeliest tokens there as (id, log-probability)."""

    log_prob: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class DrawnToken:
    """Token of an answer. `model`: under the model's own distribution; `drawn`: under the one drawn from."""

    id: int
    model: TokenLogProb | None = None
    drawn: float | None = None


@dataclass(frozen=True)
class Progress:
    """Result of a step for a request: tokens in their order, and why the answer ended, if it did.

    `prompt`: log-probabilities of the prompt's second token and those after it, once, where they were asked
    for. `reused`: the prompt's tokens that were still in the cache of an earlier request, once, no later than
    with the first token.
    """

    key: int
    tokens: tuple[DrawnToken, ...] = ()
    finish: Finish | None = None
    prompt: tuple[TokenLogProb, ...] | None = None
    reused: int | None = None


@dataclass(frozen=True)
class EngineCounts:
    """Totals since an engine was built, and its state now.

    `prefilled`, `reused`: prompt tokens that were computed, and that were still in the cache of an earlier
    request; `drawn`: tokens of answers; `passes`: forward passes of the model.
    """

    slots: int
    running: int
    waiting: int
    prefilled: int
    reused: int
    drawn: int
    passes: int


class DecodingEngine(Protocol):
    """Model that answers many requests at the same time; not thread-safe."""

    @property
    def positions(self) -> int | None:
        """Tokens that a prompt and its answer may have together; None: no limit."""
        ...

    @property
    def adapters(self) -> Sequence[str]:
        """Names of the adapters that a request may choose."""
        ...

    @property
    def busy(self) -> bool:
        """True while a request is waiting or running."""
        ...

    def submit(self, prompt: Sequence[int], parameters: SamplingParameters) -> int:
        """Queue a request; return its key, which no other request of this engine gets.

        An answer ends with "length" where the model's positions end.

        Raises:
            RequestError: the prompt is empty or leaves no position for a token, or a parameter isn't supported.
        """
        ...

    def cancel(self, key: int) -> None:
        """Drop a request and free its slot at once; nothing happens if it has ended."""
        ...

    def step(self) -> list[Progress]:
        """Advance all running requests, usually by a token each, and let waiting ones join."""
        ...

    def counts(self) -> EngineCounts:
        """Return totals and the present state."""
        ...
