"""The part of an answer that its judges see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raymill.data.prompts.metadata import PromptRecord
from raymill.rl.reward.combine import Combined
from raymill.rl.reward.functions import REWARDS
from raymill.rl.reward.task import Sample
from raymill.rl.rollout.engine import Sampling
from raymill.rl.rollout.record import RolloutRecord
from raymill.rl.sampling import Prompt, RolloutBackend, _judged


class Recorder:
    """A judge that only looks."""

    samples: list[Sample]

    def judge(self, samples: list[Sample], sequences: Sequence[Sequence[int]]) -> Combined:
        self.samples = samples
        return Combined(tuple(0.0 for _ in samples), {}, {})

    def close(self) -> None:
        pass


def spell(ids: Sequence[Sequence[int]]) -> list[str]:
    return [bytes(one).decode() for one in ids]


def test_an_answer_that_begins_in_its_prompts_reasoning_is_known_as_such() -> None:
    """Cut off before it ends its thought, it hasn't answered, whatever number stands in it."""
    asked = ["<|user|>6*7?<|assistant|><think>\n", "<|user|>6*7? <think>?<|assistant|>"]
    texts = ["Is it 42", "42"]
    ids = [np.array([*text.encode()], dtype=np.int32) for text in (*asked, *texts)]
    sampling = Sampling(64, 1.0, 1.0, (0,), 0)
    numbers: Any = np.arange(2)
    rollout = RolloutRecord(
        1, sampling, numbers, np.zeros(2, np.int32), numbers, numbers, np.ones(2, bool),
        tuple(ids[:2]), tuple(ids[2:]), tuple(np.zeros(len(one), np.float32) for one in ids[2:]),
    )  # fmt: skip
    book = {
        n: PromptRecord(n, "train", ({"role": "user", "content": "6*7?"},), "42", None, {})
        for n in range(2)
    }
    judge = Recorder()
    backend = RolloutBackend(pool=None, judge=judge, book=book, decode=spell)  # type: ignore[arg-type]
    _judged(backend, rollout, [Prompt(n, n, ()) for n in range(2)], sampling)
    assert [sample.in_reasoning for sample in judge.samples] == [True, False]
    assert [REWARDS["exact"](sample) for sample in judge.samples] == [0.0, 1.0]
