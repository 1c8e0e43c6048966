"""From what several functions say of an answer to its one reward. Pure: nothing is called here.

    reward = Σ weight · score − length_penalty · tokens / max_tokens

An answer of which one component has no finite value has no reward: it is dropped, and counted by cause.
A component of weight 0 is only looked at, and may be missing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raymill.redaction import redacted_names
from raymill.rl.reward.task import Score


@dataclass(frozen=True)
class Combined:
    """Rewards in the samples' order, None where dropped, and what they are made of.

    `components`: each function's own values, before weights; addresses are redacted. `causes`: how many
    samples each `function: cause` spoiled; one sample may have several causes. `incidents`: whoever was lost
    while judging, and replaced.
    """

    rewards: tuple[float | None, ...]
    components: dict[str, tuple[float | None, ...]]
    causes: dict[str, int]
    incidents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Combination:
    """Weights by name. `length_penalty` is what an answer of `max_tokens` loses."""

    weights: Mapping[str, float]
    max_tokens: int
    length_penalty: float = 0.0

    def combine(self, scores: Mapping[str, Sequence[Score]], tokens: Sequence[int]) -> Combined:
        """Combine the scores of each weighted name; `tokens` are the answers' lengths.

        Raises:
            ValueError: scores aren't those of the weights, or not one for each sample.
        """
        if set(scores) != set(self.weights):
            raise ValueError(f"expected scores of {sorted(self.weights)}, got {sorted(scores)}")
        lengths = {name: len(column) for name, column in scores.items()}
        if any(length != len(tokens) for length in lengths.values()):
            raise ValueError(f"expected {len(tokens)} scores each, got {lengths}")
        causes: Counter[str] = Counter()
        shown = redacted_names(self.weights)
        components = {
            shown[name]: tuple(_value(shown[name], score, causes) for score in column)
            for name, column in scores.items()
        }
        rewards = []
        for place, length in enumerate(tokens):
            row = [
                (weight, components[shown[name]][place])
                for name, weight in self.weights.items()
                if weight
            ]
            rewards.append(self._reward(row, length, causes))
        return Combined(tuple(rewards), components, dict(causes))

    def _reward(
        self, row: Sequence[tuple[float, float | None]], length: int, causes: Counter[str]
    ) -> float | None:
        parts = [weight * value for weight, value in row if value is not None]
        if len(parts) < len(row):
            return None
        total = sum(parts) - self.length_penalty * length / self.max_tokens
        if math.isfinite(total):
            return total
        causes["sum: not finite"] += 1
        return None


def metric_name(name: str) -> str:
    """A function's name, or an address, as what a metric may be called."""
    return re.sub(r"[^\w.-]+", "_", name)


def _value(name: str, score: Score, causes: Counter[str]) -> float | None:
    if score.value is not None and score.error is None and math.isfinite(score.value):
        return score.value
    causes[f"{name}: {score.cause or 'not finite'}"] += 1
    return None
