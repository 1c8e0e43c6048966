"""Sampling of requests: OpenAI's fields as an engine's parameters."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace

from raymill.generate.engine.request import SamplingParameters
from raymill.serve.errors import ApiError
from raymill.serve.requests import SamplingRequest
from raymill.serve.served_model import ServedModel

# Engines take seeds from 0; clients may send negative ones.
_SEEDS = 2**63
# Tokens of an answer where neither the request, the server nor the model sets a limit.
_UNLIMITED = 2**16


def sampling_parameters(
    request: SamplingRequest,
    model: ServedModel,
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    adapter: str | None,
) -> SamplingParameters:
    """Return the parameters of a request's first answer; `nth` gives the others.

    Raises:
        ApiError: `logit_bias` names no token.
    """
    seed = secrets.randbits(62) if request.seed is None else request.seed % _SEEDS
    return SamplingParameters(
        # An engine draws at least one token, which isn't shown if none was asked for.
        max_new_tokens=max(1, max_new_tokens),
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=_logit_bias(request.logit_bias, model.text.vocab_size),
        seed=seed,
        stop_ids=stop_ids,
        adapter=adapter,
    )


def nth(parameters: SamplingParameters, number: int) -> SamplingParameters:
    """Return the parameters of answer `number` of a request, which has a seed of its own."""
    return replace(parameters, seed=(parameters.seed + number) % _SEEDS)


def answer_limit(
    asked: int | None, prompt_tokens: int, positions: int | None, most: int | None, field: str
) -> int:
    """Return the length that an answer may have, in tokens: what is asked for, as far as positions are left.

    Raises:
        ApiError: more are asked for than the server allows.
    """
    if asked is not None and most is not None and asked > most:
        raise ApiError(
            400,
            f"{field}={asked}: this server draws at most {most} tokens per answer",
            param=field,
            code="invalid_value",
        )
    limits = [
        asked if asked is not None else most,
        None if positions is None else positions - prompt_tokens,
    ]
    return min((limit for limit in limits if limit is not None), default=_UNLIMITED)


def _logit_bias(given: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    biases = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and int(key) < vocab_size):
            raise ApiError(
                400,
                f"logit_bias: {key!r} isn't a token; they are numbers from 0 to {vocab_size - 1}",
                param="logit_bias",
                code="invalid_value",
            )
        biases[int(key)] = bias
    return biases
