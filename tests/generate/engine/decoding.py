"""Requests for engines in tests, their answers, and references to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from raymill.generate.engine.request import (
    DecodingEngine,
    Progress,
    SamplingParameters,
    TokenLogProb,
)

# Of many lengths, in no order, one of a single token. Small ids are special in some families.
PROMPTS = [
    [5 + (7 * row + 3 * place) % 50 for place in range(length)]
    for row, length in enumerate((9, 2, 5, 17, 30, 1, 12))
]
GREEDY = SamplingParameters(16, temperature=0.0)


def finished(engine: DecodingEngine) -> dict[int, list[Progress]]:
    """Run an engine until nothing waits; return the progress of every request."""
    seen: dict[int, list[Progress]] = {}
    while engine.busy:
        for progress in engine.step():
            seen.setdefault(progress.key, []).append(progress)
    return seen


def drawn(
    engine: DecodingEngine,
    prompts: Sequence[Sequence[int]],
    parameters: SamplingParameters | Sequence[SamplingParameters] = GREEDY,
) -> list[list[int]]:
    """Return the tokens of answers to prompts that are submitted together."""
    each = [parameters] * len(prompts) if isinstance(parameters, SamplingParameters) else parameters
    keys = [engine.submit(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
    seen = finished(engine)
    return [[token.id for progress in seen[key] for token in progress.tokens] for key in keys]


def generated(model: Any, prompt: list[int], count: int = 16) -> list[int]:
    """Return what transformers' own generation answers, greedily."""
    whole = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    answer: list[int] = whole[0, len(prompt) :].tolist()
    return answer


def full_logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """[T, V] float64 Logits of all tokens in one pass, without a cache."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits.double()


def assert_same_choice(model: Any, prompt: list[int], ours: list[int], theirs: list[int]) -> None:
    """Greedy answers are equal; where they part, the two likeliest logits lie within 1e-4."""
    if ours == theirs:
        return
    place = next(n for n, pair in enumerate(zip(ours, theirs, strict=True)) if len({*pair}) > 1)
    first, second = full_logits(model, prompt + theirs[:place])[-1].topk(2).values.tolist()
    assert first - second < 1e-4, f"they part at token {place}, which isn't a tie"


def assert_close(found: Sequence[TokenLogProb | None], expected: Sequence[float]) -> None:
    """Log-probabilities are these, up to rounding."""
    values = [one.log_prob for one in found if one is not None]
    assert len(values) == len(expected)
    torch.testing.assert_close(torch.tensor(values), torch.tensor(expected), rtol=0, atol=1e-4)
