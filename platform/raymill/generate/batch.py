"""Batched sampling of completions, for held-out questions and for RL rollouts.

The global random state is never touched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from raymill.generate.engine.request import DecodingEngine, Finish, SamplingParameters
from raymill.generate.modes import mode_of
from raymill.model.shape import NO_LIMIT, context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Prompt tokens of a pass, padding included. Nobody waits for single tokens here.
PREFILL_TOKENS = 4096


@dataclass(frozen=True)
class Completion:
    """Tokens sampled after a prompt, including the stop token if one was drawn.

    `log_probs`: of every token under the distribution that it was drawn from; empty unless requested.
    `left_out`: number of tokens cut from the beginning of the prompt to fit the model's positions.
    """

    ids: tuple[int, ...]
    finish: Finish
    log_probs: tuple[float, ...] = ()
    # Not compared: it describes the prompt, and two equal completions stay equal.
    left_out: int = field(default=0, compare=False)


def complete(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seeds: Sequence[int],
    stop_ids: Collection[int],
    batch_size: int,
    lockstep: bool = False,
    log_probs: bool = False,
) -> list[Completion]:
    """Complete every prompt until one of `stop_ids` or `max_new_tokens`; return them in the order of `prompts`.

    `batch_size` rows run at the same time; when one ends, the next begins. Each draws from its own generator,
    seeded with its own seed. Its completion doesn't depend on the other rows, up to floating point, and equals
    that of `sample` with the same seed; equal arguments give equal completions, bit for bit. A prompt longer
    than the model's positions minus `max_new_tokens` is cut at its beginning (see `Completion.left_out`). The
    model is put into evaluation mode, its output matrix into fp32, and both are restored at the end. A model
    family that can't be sampled in batches is sampled row by row; see `mode_of`.

    With `lockstep`, rows are completed in batches, each of which takes exactly `max_new_tokens` forward
    passes whatever is drawn. Ranks need this when they gather weights together (ZeRO-3); all of them must pass
    the same number of prompts.

    With `log_probs`, completions carry their tokens' log-probabilities after temperature and top_p,
    renormalized; at temperature 0, where sampling is deterministic, these are 0.

    Raises:
        ValueError: a prompt is empty, seeds and prompts differ in number, or no position is left for a prompt.
        ConfigError: the family can't be sampled at all.
    """
    prompt_limit = (context_length(model.config) or NO_LIMIT) - max_new_tokens
    if len(seeds) != len(prompts):
        raise ValueError(f"expected one seed per prompt, got {len(seeds)} for {len(prompts)}")
    if min(max_new_tokens, batch_size) < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be at least 1"
        )
    if prompt_limit < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} leaves no position for a prompt: the model has "
            f"{prompt_limit + max_new_tokens}"
        )
    empty = [index for index, prompt in enumerate(prompts) if not prompt]
    if empty:
        raise ValueError(f"prompts {empty[:8]} are empty: a model continues at least one token")
    mode = mode_of(model)
    # Sorted by length so that prompts read together waste little padding, longest first so that a batch too
    # large for memory fails at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    shared = SamplingParameters(
        max_new_tokens,
        temperature,
        top_p,
        stop_ids=frozenset(stop_ids),
        drawn_log_probs=log_probs,
    )
    requests = [
        (prompts[index][-prompt_limit:], replace(shared, seed=seeds[index])) for index in order
    ]
    # In lockstep, a row that is sampled alone makes its passes alone.
    size = batch_size if mode.batched or not lockstep else 1
    found: list[Completion] = []
    with evaluation_mode(model):
        engine = mode.engine(model, slots=size, prefill_tokens=None if lockstep else PREFILL_TOKENS)
        if lockstep:
            for start in range(0, len(requests), size):
                before = engine.counts().passes
                found += answers(engine, requests[start : start + size])
                idle_passes(model, max_new_tokens - (engine.counts().passes - before))
        else:
            found = answers(engine, requests)
    completions = dict(zip(order, found, strict=True))
    return [
        replace(completions[index], left_out=max(0, len(prompt) - prompt_limit))
        for index, prompt in enumerate(prompts)
    ]


def answers(
    engine: DecodingEngine, requests: Sequence[tuple[Sequence[int], SamplingParameters]]
) -> list[Completion]:
    """Return the answers to (prompt, parameters), in their order, of an engine that has nothing else to do."""
    keys = [engine.submit(prompt, parameters) for prompt, parameters in requests]
    ids: dict[int, list[int]] = {key: [] for key in keys}
    log_probs: dict[int, list[float]] = {key: [] for key in keys}
    finishes: dict[int, Finish] = {}
    while engine.busy:
        for progress in engine.step():
            for token in progress.tokens:
                ids[progress.key].append(token.id)
                if token.drawn is not None:
                    log_probs[progress.key].append(token.drawn)
            if progress.finish is not None:
                finishes[progress.key] = progress.finish
    return [Completion(tuple(ids[key]), finishes[key], tuple(log_probs[key])) for key in keys]


def idle_passes(model: PreTrainedModel, count: int) -> None:
    """Make passes whose results are ignored, so that all ranks make equally many."""
    token_11 = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    with torch.no_grad():
        for _ in range(count):
            model(input_ids=token_11, use_cache=False)


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Put a model into evaluation mode within the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
