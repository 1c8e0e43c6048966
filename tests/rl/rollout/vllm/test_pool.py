"""vLLM in a pool's actors: answers are bit for bit those of one engine, and one may be killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raymill.generate.batch import Completion
from raymill.rl.rollout.engine import BatchAnswers, Sampling
from raymill.rl.rollout.pool import RolloutPool
from raymill.rl.rollout.vllm_engine import VllmEngine, VllmSpec
from raymill.rl.rollout.weights import weights_digest
from rl.rollout.faults import PASSES, order, ordered
from rl.rollout.tiny import SAMPLING, batches, weights_of
from rl.rollout.vllm.models import load_weights, small_model, spec_of

pytestmark = pytest.mark.vllm


@dataclass(frozen=True)
class FaultySpec(VllmSpec):
    """`orders`: see `rollout.faults`."""

    orders: str = ""

    def build(self) -> VllmEngine:
        return FaultyEngine(super().build(), Path(self.orders))


class FaultyEngine(VllmEngine):
    def __init__(self, engine: VllmEngine, orders: Path) -> None:
        self.__dict__.update(engine.__dict__)
        self._orders = orders

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        what, passes = ordered(self._orders, seeds), []

        def hook(*_: Any) -> None:
            passes.append(1)
            if what and len(passes) == PASSES:
                os.kill(os.getpid(), getattr(signal, what))

        (handle,) = self.llm.apply_model(lambda model: model.register_forward_pre_hook(hook))
        with handle:
            return super().generate(prompts, sampling, seeds)


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("orders")


@pytest.fixture(scope="module")
def pool(
    ray_session: None, model: Any, orders: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RolloutPool]:
    plain = spec_of(model, tmp_path_factory.mktemp("model"))
    spec = FaultySpec(**vars(plain), orders=str(orders))
    with RolloutPool(spec, actors=2, cpus_per_actor=1, timeout_s=120, bucket_bytes=20_000) as pool:
        yield pool


def answers(engine: VllmEngine, step: int) -> list[BatchAnswers]:
    return [
        BatchAnswers.from_completions(engine.generate(batch.prompts, SAMPLING, batch.seeds))
        for batch in batches(step)
    ]


@pytest.mark.chaos
def test_two_actors_sample_what_one_engine_does_though_one_is_killed(
    pool: RolloutPool, engine: VllmEngine, model: Any, orders: Path
) -> None:
    report = pool.sync(weights_of(model), 1)
    assert report.digest == weights_digest(weights_of(model))
    found = pool.generate(batches(), SAMPLING)
    assert not found.incidents
    assert [result.completions for result in found.results] == answers(engine, 0)

    killed = batches(1)[1]
    order(orders, killed, "SIGKILL")
    found = pool.generate(batches(1), SAMPLING)
    assert [result.completions for result in found.results] == answers(engine, 1)
    (incident,) = found.incidents
    assert incident.work == f"sampling batch 1, a {killed}"

    new = small_model(seed=2)
    report = pool.sync(weights_of(new), 2)  # to the one that took its place as well
    assert report.digest == weights_digest(weights_of(new))
    load_weights(engine, new)
    found = pool.generate(batches(), SAMPLING)
    assert [result.completions for result in found.results] == answers(engine, 0)
    assert {result.version for result in found.results} == {2}
