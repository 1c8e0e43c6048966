"""Samples that reward functions receive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raymill.data.prompts.metadata import PromptRecord
from raymill.rl.reward.computer import CombinedRewards
from raymill.rl.reward.functions import REWARDS
from raymill.rl.reward.task import Sample
from raymill.rl.rollout.engine import Sampling
from raymill.rl.rollout.record import RolloutRecord
from raymill.rl.rollout_backend import RolloutBackend
from raymill.rl.shares import StepPrompts


class Recorder:
    """Reward computer that records its samples."""

    samples: list[Sample]

    def compute(self, samples: list[Sample], sequences: Sequence[Sequence[int]]) -> CombinedRewards:
        self.samples = samples
        return CombinedRewards(tuple(0.0 for _ in samples), {}, {})

    def close(self) -> None:
        pass


def spell(ids: Sequence[Sequence[int]]) -> list[str]:
    return [bytes(sequence).decode() for sequence in ids]


def test_an_answer_that_begins_in_its_prompts_reasoning_is_known_as_such() -> None:
    """Cut off before it ends its thought, it hasn't answered, whatever number stands in it."""
    prompts = ["<|user|>6*7?<|assistant|><think>\n", "<|user|>6*7? <think>?<|assistant|>"]
    texts = ["Is it 42", "42"]
    ids = [np.array([*text.encode()], dtype=np.int32) for text in (*prompts, *texts)]
    sampling = Sampling(64, 1.0, 1.0, (0,), 0)
    numbers: Any = np.arange(2)
    rollout = RolloutRecord(
        1, sampling, numbers, np.zeros(2, np.int32), numbers, numbers, np.ones(2, bool),
        tuple(ids[:2]), tuple(ids[2:]), tuple(np.zeros(len(answer), np.float32) for answer in ids[2:]),
    )  # fmt: skip
    metadata = {
        n: PromptRecord(n, "train", ({"role": "user", "content": "6*7?"},), "42", None, {})
        for n in range(2)
    }
    recorder = Recorder()
    backend = RolloutBackend(
        pool=None, reward_computer=recorder, prompt_metadata=metadata, decode=spell,  # type: ignore[arg-type]
    )  # fmt: skip
    drawn = StepPrompts(numbers, numbers, np.zeros(2, int), np.zeros((2, 1), int))
    backend.compute_rewards(rollout, drawn)
    assert [sample.in_reasoning for sample in recorder.samples] == [True, False]
    assert [REWARDS["exact"](sample) for sample in recorder.samples] == [0.0, 1.0]
