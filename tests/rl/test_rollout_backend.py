"""Rewards of a step: asked for as batches arrive, and the same in whatever order they do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from raymill.data.prompts.metadata import PromptRecord
from raymill.rl.reward.computer import CombinedRewards
from raymill.rl.reward.task import RewardError, Sample
from raymill.rl.rollout.engine import (
    BatchAnswers,
    BatchResult,
    Generation,
    PromptBatch,
    Sampling,
    plan_batches,
)
from raymill.rl.rollout_backend import RolloutBackend, ScoredRollouts
from raymill.rl.shares import StepPrompts

SAMPLING = Sampling(8, 1.0, 1.0, (0,))
LENGTHS = np.array([3, 1, 2, 5])
PROMPTS = StepPrompts(
    np.arange(4), np.arange(4), LENGTHS, np.where(np.arange(5) < LENGTHS[:, None], 7, 0)
)
WAIT_S = 30


class Judge:
    """Rewards are the tokens of the answers; the second of them is refused."""

    def __init__(self, beside: bool) -> None:
        self.beside_sampling = beside
        self.judged = threading.Event()
        self.threads: set[str] = set()

    def compute(
        self, samples: Sequence[Sample], sequences: Sequence[Sequence[int]]
    ) -> CombinedRewards:
        self.threads.add(threading.current_thread().name)
        self.judged.set()
        values = [float(sample.answer_ids[0]) for sample in samples]
        if 99.0 in values:
            raise RewardError("nobody: judges this")
        rewards = tuple(None if value == 12.0 else value for value in values)
        causes = {"r: no": rewards.count(None)} if None in rewards else {}
        return CombinedRewards(rewards, {"r": tuple(values)}, causes, ("an actor was lost",))

    def close(self) -> None:
        pass


class Pool:
    """Answers whose first token says which one they are; the last batch arrives first."""

    def __init__(self, wait: Callable[[], object], first: int = 10) -> None:
        self._wait, self._first = wait, first

    def start_generate(
        self, batches: Sequence[PromptBatch], sampling: Sampling, on_result: Any = None
    ) -> None:
        self._results = []
        for batch in batches:
            ids = [self._first + 2 * sample + number for sample, number in batch.answers]
            self._results.append(
                BatchResult(
                    batch,
                    BatchAnswers(
                        np.array(ids, np.int32), np.zeros(len(ids), np.float32),
                        np.arange(1, len(ids) + 1), np.ones(len(ids), bool),
                    ),
                    1,
                )
            )  # fmt: skip
        if on_result is not None:
            for number in reversed(range(len(self._results))):
                on_result(number, self._results[number])

    def collect(self) -> Generation[Any]:
        self._wait()
        return Generation(tuple(self._results), 1.0)

    def close(self) -> None:
        pass


def scored(judge: Judge, pool: Pool) -> ScoredRollouts:
    metadata = {n: PromptRecord(n, "train", (), None, None, {}) for n in range(4)}
    backend = RolloutBackend(
        pool=pool, reward_computer=judge, prompt_metadata=metadata,  # type: ignore[arg-type]
        decode=lambda ids: ["" for _ in ids],
    )  # fmt: skip
    batches = plan_batches(PROMPTS.by_sample(), group_size=2, batch=3, seed=1, step=1)
    try:
        backend.start(1, PROMPTS, batches, SAMPLING)
        return backend.collect(1, PROMPTS, 2, SAMPLING)
    finally:
        backend.close()


def test_answers_are_judged_while_others_are_sampled() -> None:
    beside, after = Judge(beside=True), Judge(beside=False)
    early = scored(beside, Pool(lambda: beside.judged.wait(WAIT_S) or pytest.fail("not judged")))
    late = scored(after, Pool(lambda: after.judged.is_set() and pytest.fail("judged too early")))
    assert after.threads == {threading.current_thread().name}
    assert len(beside.threads) == 1 and beside.threads != after.threads
    for found in (early, late):
        ids = [answer.tolist() for answer in found.rollout.answers]
        assert ids == [[number] for number in range(10, 18)]
        expected = np.array([10, 11, np.nan, 13, 14, 15, 16, 17])
        assert np.array_equal(found.rewards, expected, equal_nan=True)
        assert np.array_equal(found.components["r"], np.arange(10.0, 18.0))
        assert found.causes == {"r: no": 1}
        assert found.incidents == ("an actor was lost",) * 3


def test_what_cannot_be_judged_is_raised_where_answers_are_collected() -> None:
    with pytest.raises(RewardError, match="nobody: judges this"):
        scored(Judge(beside=True), Pool(lambda: None, first=96))
