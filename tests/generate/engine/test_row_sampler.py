"""Rows that are drawn together by different parameters, against a plain reference in float64."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from raymill.generate.engine.request import RequestError, SamplingParameters
from raymill.generate.engine.request_state import RequestState, check_request, uniform_numbers
from raymill.generate.engine.row_sampler import RowSampler

VOCAB_SIZE = 40
PLAIN = SamplingParameters(max_new_tokens=5)
CPU = torch.device("cpu")
PROMPT, ANSWER = [3, 7, 7, 1], [2, 9, 2, 2]
SETTINGS = {
    "plain": PLAIN,
    "greedy": replace(PLAIN, temperature=0.0),
    "temperature": replace(PLAIN, temperature=0.6),
    "top_p": replace(PLAIN, top_p=0.7),
    "top_k": replace(PLAIN, top_k=3),
    "min_p": replace(PLAIN, min_p=0.2),
    "repetition_penalty": replace(PLAIN, repetition_penalty=1.7),
    "presence_penalty": replace(PLAIN, presence_penalty=1.1),
    "frequency_penalty": replace(PLAIN, frequency_penalty=0.8),
    "logit_bias": replace(PLAIN, logit_bias={5: 3.0, 9: -100.0}),
    "all": replace(
        PLAIN, temperature=1.3, top_p=0.9, top_k=9, min_p=0.05, repetition_penalty=0.8,
        presence_penalty=-0.5, frequency_penalty=0.3, logit_bias={2: 2.0},
    ),
    "greedy_with_penalties": replace(PLAIN, temperature=0.0, frequency_penalty=9.0),
}  # fmt: skip


class Even:
    """Constraint to even tokens."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def allowed(self) -> torch.Tensor:
        return torch.arange(VOCAB_SIZE - 5) % 2 == 0

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def reference(logits: list[float], p: SamplingParameters, seed: int) -> tuple[int, float]:
    """Return the token that a list and a loop give, and its log-probability."""
    counts = Counter(ANSWER)
    values = {token: value + p.logit_bias.get(token, 0.0) for token, value in enumerate(logits)}
    for token in {*PROMPT, *ANSWER}:
        scale = p.repetition_penalty
        values[token] = values[token] / scale if values[token] > 0 else values[token] * scale
    for token, count in counts.items():
        values[token] -= p.presence_penalty + p.frequency_penalty * count
    if p.constraint is not None:
        values = {token: values[token] for token in range(0, VOCAB_SIZE - 5, 2)}
    best = max(values, key=lambda token: values[token])
    if p.temperature == 0:
        return best, 0.0
    falling = sorted(values, key=lambda token: -values[token])[: p.top_k or None]
    weight = {token: math.exp((values[token] - values[best]) / p.temperature) for token in falling}
    total = sum(weight.values())
    kept, mass = [], 0.0
    for token in falling:
        if mass / total < p.top_p and weight[token] >= p.min_p:
            kept.append(token)
        mass += weight[token]
    total = sum(weight[token] for token in kept)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(ANSWER) + 1, generator=generator, dtype=torch.float64)[-1].item()
    reached = 0.0
    for token in sorted(kept):
        reached += weight[token] / total
        if reached > uniform:
            return token, math.log(weight[token] / total)
    raise AssertionError("the probabilities sum to 1")


def row(parameters: SamplingParameters, seed: int) -> RequestState:
    """A row in the middle of its answer."""
    numbers = uniform_numbers(seed, skip=len(ANSWER))
    return RequestState(seed, [*PROMPT, *ANSWER], len(PROMPT), parameters, 99, numbers)


@pytest.mark.parametrize("name", [*SETTINGS, "constraint"])
def test_each_parameter_does_what_its_definition_says(name: str) -> None:
    def parameters(seed: int) -> SamplingParameters:
        given = SETTINGS[name] if name != "constraint" else replace(PLAIN, constraint=Even())
        return replace(given, seed=seed, drawn_log_probs=True)

    rows = [row(parameters(seed), seed) for seed in range(60)]
    logits = 2 * torch.randn(60, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    draws = RowSampler(rows, CPU).draw(logits)
    assert draws.drawn is not None
    for number, one in enumerate(rows):
        token, log_prob = reference(logits[number].double().tolist(), one.parameters, number)
        assert draws.tokens[number] == token
        assert draws.drawn[number] == pytest.approx(log_prob, abs=1e-5)
        if isinstance(one.parameters.constraint, Even):
            assert one.parameters.constraint.accepted == [token]


def test_rows_do_not_change_each_other() -> None:
    given = [*SETTINGS.values(), replace(PLAIN, constraint=Even())]
    logits = 2 * torch.randn(len(given), VOCAB_SIZE, generator=torch.Generator().manual_seed(2))
    rows = [row(replace(p, seed=n), n) for n, p in enumerate(given)]
    together = RowSampler(rows, CPU).draw(logits)
    for number, p in enumerate(given):
        alone = RowSampler([row(replace(p, seed=number), number)], CPU)
        [token] = alone.draw(logits[number : number + 1]).tokens
        assert together.tokens[number] == token


def test_penalties_follow_the_tokens_that_are_drawn() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 10], logits[0, 11] = 2.0, 1.5
    sampler = RowSampler([row(replace(PLAIN, temperature=0.0, frequency_penalty=1.0), 0)], CPU)
    assert [sampler.draw(logits).tokens[0] for _ in range(4)] == [10, 11, 10, 11]


def test_numbers_are_those_of_one_generator() -> None:
    generator = torch.Generator().manual_seed(5)
    one_by_one = [
        torch.rand(1, generator=generator, dtype=torch.float64).item() for _ in range(150)
    ]
    numbers = uniform_numbers(5)
    assert [next(numbers) for _ in range(150)] == one_by_one
    assert next(uniform_numbers(5, skip=100)) == one_by_one[100]


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": math.inf}, "presence_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"logit_bias": {VOCAB_SIZE: 1.0}}, "logit_bias"),
        ({"top_log_probs": -1}, "top_log_probs"),
        ({"adapter": "red"}, "adapter"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(changes: dict[str, Any], parameter: str) -> None:
    with pytest.raises(RequestError, match=parameter) as refused:
        check_request(
            [1], replace(PLAIN, **changes), positions=9, vocab_size=VOCAB_SIZE, adapters=()
        )
    assert refused.value.parameter == parameter


@pytest.mark.parametrize("prompt", [[], [1] * 9, [VOCAB_SIZE], [-1]])
def test_a_prompt_that_cannot_be_continued_is_refused(prompt: list[int]) -> None:
    with pytest.raises(RequestError, match="the prompt") as refused:
        check_request(prompt, PLAIN, positions=9, vocab_size=VOCAB_SIZE, adapters=())
    assert refused.value.parameter == "prompt"
