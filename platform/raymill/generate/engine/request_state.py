"""State of a request in an engine of this package, and the check of what is asked for."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from raymill.generate.engine.request import RequestError, SamplingParameters, TokenLogProb

# Numbers that a generator draws at once.
BLOCK = 64


@dataclass(eq=False)
class RequestState:
    """A request that waits or runs.

    `tokens`: prompt and answer; `cached`: how many of them the model's cache covers; `reused`: prompt tokens
    that an earlier request's cache covered; `limit`: tokens that prompt and answer may have together;
    `numbers`: the answer's own numbers in [0, 1); `prompt_log_probs`: of the prompt's tokens after the first,
    as far as they were computed.
    """

    key: int
    tokens: list[int]
    prompt_length: int
    parameters: SamplingParameters
    limit: int
    numbers: Iterator[float]
    cached: int = 0
    reused: int = 0
    prompt_log_probs: list[TokenLogProb] = field(default_factory=list)

    @property
    def uncached(self) -> int:
        """Tokens that the model hasn't read yet."""
        return len(self.tokens) - self.cached


def uniform_numbers(seed: int, skip: int = 0) -> Iterator[float]:
    """Yield the numbers in [0, 1) of a generator of its own, in float64, after the first `skip`."""

    def blocks() -> Iterator[float]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            # Equal to numbers that are drawn one by one.
            yield from torch.rand(BLOCK, generator=generator, dtype=torch.float64).tolist()

    return islice(blocks(), skip, None)


def check_request(
    prompt: Sequence[int],
    parameters: SamplingParameters,
    *,
    positions: int | None,
    vocab_size: int | None,
    adapters: Collection[str],
) -> None:
    """Check that a request can be answered.

    Raises:
        RequestError: it names the parameter at fault.
    """
    if not prompt:
        raise RequestError("prompt", "the prompt is empty: a model continues at least one token")
    if positions is not None and len(prompt) >= positions:
        raise RequestError(
            "prompt",
            f"the prompt has {len(prompt)} tokens and leaves no position for an answer: the model has "
            f"{positions} for both",
        )
    size = math.inf if vocab_size is None else vocab_size
    if strange := [token for token in prompt if not 0 <= token < size]:
        raise RequestError(
            "prompt", f"the prompt has token {strange[0]}, the model's ids are below {vocab_size}"
        )
    p = parameters
    valid = {
        "max_new_tokens": (p.max_new_tokens >= 1, "at least 1"),
        "temperature": (0 <= p.temperature < math.inf, "at least 0"),
        "top_p": (0 < p.top_p <= 1, "above 0 and at most 1"),
        "top_k": (p.top_k >= 0, "at least 0"),
        "min_p": (0 <= p.min_p <= 1, "from 0 to 1"),
        "repetition_penalty": (0 < p.repetition_penalty < math.inf, "above 0"),
        "presence_penalty": (math.isfinite(p.presence_penalty), "finite"),
        "frequency_penalty": (math.isfinite(p.frequency_penalty), "finite"),
        "top_log_probs": ((p.top_log_probs or 0) >= 0, "at least 0"),
    }
    for name, (fits, expected) in valid.items():
        if not fits:
            raise RequestError(name, f"{name}={getattr(p, name)} must be {expected}")
    for token, bias in p.logit_bias.items():
        if not 0 <= token < size or math.isnan(bias):
            raise RequestError(
                "logit_bias",
                f"logit_bias: token {token} with {bias}; ids are below {vocab_size}, biases numbers",
            )
    if p.adapter is not None and p.adapter not in adapters:
        known = ", ".join(adapters) or "none"
        raise RequestError("adapter", f"adapter={p.adapter} isn't loaded; loaded are: {known}")
