"""Frequencies of vLLM's answers over many seeds, against transformers' probabilities and engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raymill.rl.rollout.engine import Sampling, answer_seed
from raymill.rl.rollout.transformers_engine import ModelSpec
from raymill.rl.rollout.vllm_engine import VllmEngine
from raymill.rl.rollout.weights import buckets
from rl.rollout.tiny import VOCAB_SIZE, folder_of, weights_of
from rl.rollout.vllm.models import full_pass, log_softmax, small_model

pytestmark = pytest.mark.vllm

PROMPT = [17, 4, 99]
ANSWERS = 4000
LEAST = 8  # expected answers of a kind; rarer kinds are counted as one
SURE = 1e-3  # a right engine fails this often; seeds are fixed, so today's doesn't


def spread(temperature: float, top_p: float) -> Sampling:
    return Sampling(2, temperature, top_p, stop_ids=(3, 5, 11, 60))


def exact(model: Any, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """Probability of every answer of up to two tokens."""

    def following(*answer: int) -> np.ndarray:
        logits = full_pass(model, PROMPT, [*answer, 0])[-1]
        row = np.exp(log_softmax(logits / sampling.temperature))
        falling = np.argsort(-row)
        row[falling[np.searchsorted(np.cumsum(row[falling]), sampling.top_p) + 1 :]] = 0
        return np.asarray(row / row.sum())

    found: dict[tuple[int, ...], float] = {}
    for first, chance in enumerate(following()):
        if first in sampling.stop_ids:
            found[(first,)] = chance
        elif chance > 0:
            for second, then in enumerate(following(first)):
                found[first, second] = chance * then
    return found


def kinds(found: dict[tuple[int, ...], float]) -> list[tuple[int, ...]]:
    return [answer for answer, chance in found.items() if chance * ANSWERS >= LEAST]


def counted(counts: Counter[tuple[int, ...]], named: list[tuple[int, ...]]) -> np.ndarray:
    """Count the answers of each kind, and all others together."""
    some = [counts[answer] for answer in named]
    return np.array([*some, counts.total() - sum(some)])


def sampled(engine: Any, sampling: Sampling, seed: int) -> Counter[tuple[int, ...]]:
    seeds = [answer_seed(seed, 1, 2, number) for number in range(ANSWERS)]
    return Counter(
        completion.ids
        for first in range(0, ANSWERS, 500)
        for completion in engine.generate([PROMPT] * 500, sampling, seeds[first : first + 500])
    )


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.4, 0.7)])
def test_answers_are_as_frequent_as_they_should_be(
    tmp_path: Path, engine: VllmEngine, model: Any, temperature: float, top_p: float
) -> None:
    sampling = spread(temperature, top_p)
    chances = exact(model, sampling)
    named = kinds(chances)
    assert len(named) > 15
    expected = np.array([chances[answer] for answer in named])
    expected = np.append(expected, 1 - expected.sum()) * ANSWERS
    counts = sampled(engine, sampling, seed=1)
    assert all(chances.get(answer, 0) > 0 for answer in counts), "outside of what is kept"
    ours = counted(counts, named)
    assert stats.chisquare(ours, expected).pvalue > SURE

    reference = ModelSpec(folder_of(model, tmp_path), VOCAB_SIZE, "sdpa", "fp32", 1).build()
    reference.load(buckets(weights_of(model)))
    theirs = counted(sampled(reference, sampling, seed=2), named)
    assert stats.chisquare(theirs, expected).pvalue > SURE
    assert stats.chi2_contingency([ours, theirs]).pvalue > SURE

    # That the test would notice: of a temperature that is 10 % off.
    off = exact(model, replace(sampling, temperature=temperature * 1.1))
    wrong = np.array([off.get(answer, 0.0) for answer in named])
    wrong = np.append(wrong, 1 - wrong.sum()) * ANSWERS
    assert stats.chisquare(ours, wrong).pvalue < SURE


def test_an_answer_is_as_likely_as_its_log_probs_say(engine: VllmEngine, model: Any) -> None:
    """E[q(answer) / p(answer)] is 1 for any q: here q is another model's, and p what is reported."""
    other = small_model()
    for parameter in other.parameters():
        parameter.data.mul_(0.9)
    sampling = spread(1.0, 1.0)
    chances = exact(other, sampling)
    seeds = [answer_seed(3, 1, 2, number) for number in range(ANSWERS)]
    found = engine.generate([PROMPT] * ANSWERS, sampling, seeds)
    ratios = np.array([chances[c.ids] / np.exp(sum(c.log_probs)) for c in found])
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / np.sqrt(ANSWERS)
