"""Rewards of a batch of answers: scores of functions, services and a reward model, combined into one number.

    reward = Σ weight · score − length_penalty · tokens / max_tokens

An answer for which a weighted component has no finite value gets no reward: it is dropped, and counted by
cause. A component of weight 0 is only logged, and may be missing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from raymill.redaction import redacted_names
from raymill.rl.reward.http import Endpoint, is_address
from raymill.rl.reward.model import SequenceScorer
from raymill.rl.reward.pool import RewardPool
from raymill.rl.reward.task import Sample, Score

# Name of the reward model among the components.
MODEL = "model"


@dataclass(frozen=True)
class CombinedRewards:
    """Rewards in the samples' order, None where dropped, with the components that they are computed from.

    `components`: each function's own values, before weights; addresses are redacted. `causes`: number of
    samples dropped by each `function: cause`; a sample may have several causes. `incidents`: actors that
    were lost and replaced.
    """

    rewards: tuple[float | None, ...]
    components: dict[str, tuple[float | None, ...]]
    causes: dict[str, int]
    incidents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Combination:
    """Weights by name. `length_penalty` is subtracted in full from an answer of `max_tokens`."""

    weights: Mapping[str, float]
    max_tokens: int
    length_penalty: float = 0.0

    def combine(
        self, scores: Mapping[str, Sequence[Score]], lengths: Sequence[int]
    ) -> CombinedRewards:
        """Combine the scores of each weighted name; `lengths` are the answers' tokens.

        Raises:
            ValueError: scores and weights have different names, or there isn't one score per sample.
        """
        if set(scores) != set(self.weights):
            raise ValueError(f"expected scores of {sorted(self.weights)}, got {sorted(scores)}")
        counts = {name: len(column) for name, column in scores.items()}
        if any(count != len(lengths) for count in counts.values()):
            raise ValueError(f"expected {len(lengths)} scores each, got {counts}")
        causes: Counter[str] = Counter()
        redacted = redacted_names(self.weights)
        components = {
            redacted[name]: tuple(_value(redacted[name], score, causes) for score in column)
            for name, column in scores.items()
        }
        rewards: list[float | None] = []
        for index, length in enumerate(lengths):
            weighted = [
                (weight, components[redacted[name]][index])
                for name, weight in self.weights.items()
                if weight
            ]
            parts = [weight * value for weight, value in weighted if value is not None]
            if len(parts) < len(weighted):
                rewards.append(None)
                continue
            total = sum(parts) - self.length_penalty * length / self.max_tokens
            if not math.isfinite(total):
                causes["sum: not finite"] += 1
            rewards.append(total if math.isfinite(total) else None)
        return CombinedRewards(tuple(rewards), components, dict(causes))


def _value(name: str, score: Score, causes: Counter[str]) -> float | None:
    """Return a score's value; if it has none, count the cause."""
    if score.value is not None and score.error is None and math.isfinite(score.value):
        return score.value
    causes[f"{name}: {score.cause or 'not finite'}"] += 1
    return None


def metric_name(name: str) -> str:
    """Return a function's name, or an address, with only the characters that metric names may have."""
    return re.sub(r"[^\w.-]+", "_", name)


class Scorer:
    """Caller of the functions named in a configuration: some in worker processes, some as services.

    `timeout_s` limits one call.
    """

    def __init__(self, names: Sequence[str], *, workers: int = 1, timeout_s: float = 10.0) -> None:
        self._functions = [name for name in names if not is_address(name)]
        self._endpoints = [
            Endpoint(name, timeout_s=timeout_s) for name in names if is_address(name)
        ]
        self._pool = RewardPool(workers=workers, timeout_s=timeout_s, names=self._functions)

    @property
    def restarts(self) -> int:
        """Number of worker processes that had to be replaced."""
        return self._pool.restarts

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Score]]:
        """Return scores by name, each in the order of `samples`. Services are called while functions run.

        Raises:
            RewardError: processes for functions don't start on this machine.
        """
        calls = [(name, sample) for name in self._functions for sample in samples]
        with ThreadPoolExecutor(max_workers=max(1, len(self._endpoints))) as threads:
            futures = [threads.submit(endpoint.score, samples) for endpoint in self._endpoints]
            scores = self._pool.score(calls)
            by_name = {
                name: scores[index * len(samples) : (index + 1) * len(samples)]
                for index, name in enumerate(self._functions)
            }
            for endpoint, future in zip(self._endpoints, futures, strict=True):
                by_name[endpoint.address] = future.result()
        return by_name

    def close(self) -> None:
        """End the worker processes. May be called twice."""
        self._pool.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class RewardComputer:
    """Computation of rewards from functions, services and, unless `model` is None, a reward model.

    The reward model was trained on complete conversations, so `closing`, the tokens that the chat template
    writes after an assistant's turn, are appended to each sequence that ends with `end_of_turn`.
    """

    scorer: Scorer
    combination: Combination
    model: SequenceScorer | None = None
    end_of_turn: int | None = None
    closing: tuple[int, ...] = ()

    @property
    def beside_sampling(self) -> bool:
        """True if other processes do the work, so that it may be asked for while answers are sampled."""
        return self.model is None or not self.model.in_process

    def compute(
        self, samples: Sequence[Sample], sequences: Sequence[Sequence[int]]
    ) -> CombinedRewards:
        """Compute the rewards of answers; `sequences` are the tokens of each prompt with its answer.

        Raises:
            RewardError: functions can't be called on this machine.
            RolloutError: the reward model's actors can't be started or replaced.
        """
        scores = self.scorer.score(samples)
        incidents: tuple[str, ...] = ()
        if self.model is not None:
            closed = [
                [*ids, *self.closing] if ids[-1] == self.end_of_turn else ids for ids in sequences
            ]
            scores[MODEL], incidents = self.model.score(closed)
        combined = self.combination.combine(scores, [len(sample.answer_ids) for sample in samples])
        return replace(combined, incidents=incidents)

    def close(self) -> None:
        """End worker processes and actors."""
        self.scorer.close()
        if self.model is not None:
            self.model.close()
