"""Completing many prompts at once: held-out questions now, rollouts of RL later.

Shapes: B prompts of a batch that are still being completed, T tokens of an answer, V vocabulary. As in
`sampling.py`, the global random state is never touched.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from raymill.generate.modes import mode_of
from raymill.generate.rows import GrowingRows
from raymill.generate.sampling import draw
from raymill.model.shape import NO_LIMIT, context_length
from raymill.objective.heads import Fp32Head


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt: with the stop token, if it drew one.

    `log_probs`, where asked for: of every token, under the distribution that it was drawn from.
    `left_out`: tokens of the prompt's beginning that the model hasn't seen.
    """

    ids: tuple[int, ...]
    finish: Literal["stop", "length"]
    log_probs: tuple[float, ...] = ()
    # Of the prompt: what was written is the same after what was left of it.
    left_out: int = field(default=0, compare=False)


def complete(
    model: Any,
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
    """Complete every prompt until one of `stop_ids` or `max_new_tokens`; in the order of `prompts`.

    A row draws from a generator of its own, seeded by its seed: what it becomes doesn't depend on
    the rows beside it, up to floating point, and is what `sample` gives with that seed. A prompt
    longer than the model's positions minus `max_new_tokens` keeps its last part, and its completion says how
    much it lost. The model is in evaluation mode meanwhile, with its output matrix in fp32, and then as it
    was. A family that can't be sampled in batches is sampled row by row; see `mode_of`.

    With `lockstep`, each batch takes exactly `max_new_tokens` forward passes whatever is drawn, as
    ranks must that gather weights together (ZeRO-3); give all of them as many prompts.

    With `log_probs`, completions carry their tokens' log-probabilities after temperature and top_p,
    renormalised; at temperature 0, where nothing is left to chance, these are 0.

    Raises:
        ValueError: an empty prompt, not one seed a prompt, or no position left for a prompt.
        ConfigError: the family can't be sampled at all.
    """
    room = (context_length(model.config) or NO_LIMIT) - max_new_tokens
    _check(prompts, seeds, room, max_new_tokens, batch_size)
    mode = mode_of(model)
    batch_size = batch_size if mode.batched else 1
    # Neighbours in length waste little padding; the longest come first, so that what doesn't fit
    # into memory fails at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    completions: dict[int, Completion] = {}
    device = next(model.parameters()).device
    head = Fp32Head(model.get_output_embeddings())
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            held = [prompts[index][-room:] for index in chosen]
            rows = GrowingRows(model, held, pad_id, mode.cached)
            batch = _Batch(rows, len(chosen), frozenset(stop_ids), log_probs)
            uniform_TB = _uniform([seeds[index] for index in chosen], max_new_tokens).to(device)
            with torch.no_grad(), head:
                for uniform_B in uniform_TB:
                    if not batch.running and not lockstep:
                        break
                    batch.step(temperature, top_p, uniform_B)
            for index, completion in zip(chosen, batch.completions(), strict=True):
                left_out = max(0, len(prompts[index]) - room)
                completions[index] = replace(completion, left_out=left_out)
    finally:
        model.train(was_training)
    return [completions[index] for index in range(len(prompts))]


def _check(
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    room: int,
    max_new_tokens: int,
    batch_size: int,
) -> None:
    if len(seeds) != len(prompts):
        raise ValueError(f"expected one seed a prompt, got {len(seeds)} for {len(prompts)}")
    if min(max_new_tokens, batch_size) < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be at least 1"
        )
    if room < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} leaves no position for a prompt: the model has "
            f"{room + max_new_tokens}"
        )
    empty = [index for index, prompt in enumerate(prompts) if not prompt]
    if empty:
        raise ValueError(f"prompts {empty[:8]} are empty: a model continues at least one token")


def _uniform(seeds: Sequence[int], count: int) -> torch.Tensor:
    """[count, rows] numbers in [0, 1), each row's from a generator of its own, as drawn one by one."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = [torch.rand(count, generator=one, dtype=torch.float64) for one in generators]
    return torch.stack(drawn, dim=1)


class _Batch:
    """Prompts that grow together. Rows that have ended leave the tensors, and the cache, at once."""

    def __init__(
        self, rows: GrowingRows, count: int, stop_ids: frozenset[int], log_probs: bool
    ) -> None:
        self._growing = rows
        self._stop_ids = stop_ids
        self._log_probs = log_probs
        self._drawn: list[list[int]] = [[] for _ in range(count)]
        self._drawn_log_probs: list[list[float]] = [[] for _ in range(count)]
        self._stopped = [False] * count
        self._rows = list(range(count))  # those that still grow
        self.running = True

    def step(self, temperature: float, top_p: float, uniform_B: torch.Tensor) -> None:
        """One forward pass and a token for every row; when none runs, the pass is made for show."""
        token_B, log_probs_B = _next(
            self._growing.logits(), temperature, top_p, uniform_B[self._rows]
        )
        self._growing.append(token_B)
        if self.running:
            self._take(token_B.tolist(), log_probs_B.tolist() if self._log_probs else None)

    def _take(self, tokens: Sequence[int], log_probs: Sequence[float] | None) -> None:
        for row, token in zip(self._rows, tokens, strict=True):
            self._drawn[row].append(token)
            self._stopped[row] = token in self._stop_ids
        for row, log_prob in zip(self._rows, log_probs or (), strict=False):
            self._drawn_log_probs[row].append(log_prob)
        kept = [place for place, row in enumerate(self._rows) if not self._stopped[row]]
        self.running = bool(kept)
        kept = kept or [0]  # in lockstep, passes need a row
        if len(kept) < len(self._rows):
            self._growing.keep(kept)
            self._rows = [self._rows[place] for place in kept]

    def completions(self) -> list[Completion]:
        return [
            Completion(tuple(ids), "stop" if stopped else "length", tuple(log_probs))
            for ids, stopped, log_probs in zip(
                self._drawn, self._stopped, self._drawn_log_probs, strict=True
            )
        ]


def _next(
    logits_BV: torch.Tensor, temperature: float, top_p: float, uniform_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sampling.next_token` with a number a row, and the tokens' log-probabilities."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1), torch.zeros_like(uniform_B)
    return draw(logits_BV, temperature, top_p, uniform_B)
