"""A reward function that fails for every other answer."""

from __future__ import annotations

from raymill.rl.reward.task import Sample


def refuse(sample: Sample) -> float:
    raise ValueError("whatever the answer")


def judge(sample: Sample) -> float:
    if sum(sample.answer_ids) % 2:
        raise ValueError("an odd answer")
    return float(len(sample.answer_ids))
