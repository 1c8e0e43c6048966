"""Batched sampling of completions, for held-out questions and for RL rollouts.

Shapes: B prompts of a batch that are still being completed, T tokens of an answer, V vocabulary. As in
`sampling.py`, the global random state is never touched.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch

from raymill.generate.modes import mode_of
from raymill.generate.rows import GrowingRows
from raymill.generate.sampling import draw
from raymill.model.shape import NO_LIMIT, context_length
from raymill.objective.heads import Fp32Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Completion:
    """Tokens sampled after a prompt, including the stop token if one was drawn.

    `log_probs`: of every token under the distribution that it was drawn from; empty unless requested.
    `left_out`: number of tokens cut from the beginning of the prompt to fit the model's positions.
    """

    ids: tuple[int, ...]
    finish: Literal["stop", "length"]
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
    pad_id: int = 0,
    lockstep: bool = False,
    log_probs: bool = False,
) -> list[Completion]:
    """Complete every prompt until one of `stop_ids` or `max_new_tokens`; return them in the order of `prompts`.

    Each row draws from its own generator, seeded with its own seed. Its completion doesn't depend on the
    other rows of its batch, up to floating point, and equals that of `sample` with the same seed. A prompt
    longer than the model's positions minus `max_new_tokens` is cut at its beginning (see
    `Completion.left_out`). The model is put into evaluation mode, its output matrix into fp32, and both are
    restored at the end. A model family that can't be sampled in batches is sampled row by row; see
    `mode_of`.

    With `lockstep`, each batch takes exactly `max_new_tokens` forward passes whatever is drawn. Ranks need this
    when they gather weights together (ZeRO-3); all of them must pass the same number of prompts.

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
    batch_size = batch_size if mode.batched else 1
    # Sorted by length so that batches waste little padding, longest first so that a batch too large for memory
    # fails at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    completions: dict[int, Completion] = {}
    device = next(model.parameters()).device
    head = Fp32Head(model.get_output_embeddings())
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            tails = [prompts[index][-prompt_limit:] for index in indices]
            rows = GrowingRows(model, tails, pad_id, mode.cached)
            batch = _Batch(rows, len(indices), frozenset(stop_ids), log_probs)
            uniform_TB = _uniform([seeds[index] for index in indices], max_new_tokens).to(device)
            with torch.no_grad(), head:
                for uniform_B in uniform_TB:
                    if not batch.running and not lockstep:
                        break
                    batch.step(temperature, top_p, uniform_B)
            for index, completion in zip(indices, batch.completions(), strict=True):
                left_out = max(0, len(prompts[index]) - prompt_limit)
                completions[index] = replace(completion, left_out=left_out)
    finally:
        model.train(was_training)
    return [completions[index] for index in range(len(prompts))]


def _uniform(seeds: Sequence[int], count: int) -> torch.Tensor:
    """[count, rows] Numbers in [0, 1), each row's from its own generator, equal to those drawn one by one."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = [torch.rand(count, generator=each, dtype=torch.float64) for each in generators]
    return torch.stack(drawn, dim=1)


class _Batch:
    """Prompts completed together. Rows that have ended are removed from the tensors and the cache at once."""

    def __init__(
        self, rows: GrowingRows, count: int, stop_ids: frozenset[int], log_probs: bool
    ) -> None:
        self._growing = rows
        self._stop_ids = stop_ids
        self._log_probs = log_probs
        self._drawn: list[list[int]] = [[] for _ in range(count)]
        self._drawn_log_probs: list[list[float]] = [[] for _ in range(count)]
        self._stopped = [False] * count
        # Numbers of the rows that still grow.
        self._rows = list(range(count))
        self.running = True

    def step(self, temperature: float, top_p: float, uniform_B: torch.Tensor) -> None:
        """Make one forward pass and draw a token for every row.

        When no row is running (in lockstep), the pass is still made and its tokens are ignored.
        """
        logits_BV = self._growing.logits()
        if temperature == 0:
            token_B = logits_BV.argmax(dim=-1)
            log_prob_B = torch.zeros_like(uniform_B[self._rows])
        else:
            token_B, log_prob_B = draw(logits_BV, temperature, top_p, uniform_B[self._rows])
        self._growing.append(token_B)
        if not self.running:
            return
        for row, token in zip(self._rows, token_B.tolist(), strict=True):
            self._drawn[row].append(token)
            self._stopped[row] = token in self._stop_ids
        if self._log_probs:
            for row, log_prob in zip(self._rows, log_prob_B.tolist(), strict=True):
                self._drawn_log_probs[row].append(log_prob)
        kept = [index for index, row in enumerate(self._rows) if not self._stopped[row]]
        self.running = bool(kept)
        # In lockstep, forward passes continue and need a row.
        kept = kept or [0]
        if len(kept) < len(self._rows):
            self._growing.keep(kept)
            self._rows = [self._rows[index] for index in kept]

    def completions(self) -> list[Completion]:
        """Return every row's completion."""
        return [
            Completion(tuple(ids), "stop" if stopped else "length", tuple(log_probs))
            for ids, stopped, log_probs in zip(
                self._drawn, self._stopped, self._drawn_log_probs, strict=True
            )
        ]
