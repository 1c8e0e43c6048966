"""Answers are bit for bit the same with no actor, one or two, and whatever happens to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from raymill.rl.rollout.engine import RolloutError
from raymill.rl.rollout.pool import LocalPool, RolloutPool
from raymill.rl.rollout.weights import weights_digest
from rl.rollout.faults import FaultySpec, order
from rl.rollout.tiny import (
    SAMPLING,
    VOCAB_SIZE,
    batches,
    folder_of,
    sampled,
    tiny_model,
    weights_of,
)

TIMEOUT_S = 60.0
OLD, NEW = 1, 2  # seeds of models


@dataclass(frozen=True)
class Expected:
    spec: FaultySpec
    orders: Path
    expected: dict[
        tuple[int, int], Any
    ]  # (model's seed, step) → what a pool without actors samples


@pytest.fixture(scope="module")
def expected_answers(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    folder, orders = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("orders")
    spec = FaultySpec(
        folder_of(tiny_model(), folder), VOCAB_SIZE, "sdpa", "fp32", threads=1, orders=str(orders)
    )
    local, expected = LocalPool(spec), {}
    for seed in (OLD, NEW):
        local.sync(weights_of(tiny_model(seed=seed)), seed)
        for step in (0, 1):
            expected[seed, step] = sampled(local.generate(batches(step), SAMPLING))
    assert expected[OLD, 0] != expected[NEW, 0]
    return Expected(spec, orders, expected)


@pytest.fixture(scope="module")
def pool(ray_session: None, expected_answers: Expected) -> Iterator[RolloutPool]:
    """Two actors, which fill the cluster: one that is replaced must have left its place."""
    with RolloutPool(
        expected_answers.spec, actors=2, cpus_per_actor=1, timeout_s=TIMEOUT_S, bucket_bytes=20_000
    ) as pool:
        yield pool


def load_weights(pool: RolloutPool, seed: int) -> None:
    model = tiny_model(seed=seed)
    report = pool.sync(weights_of(model), version=seed)
    assert (report.version, report.digest) == (seed, weights_digest(weights_of(model)))
    assert report.bytes == sum(tensor.nbytes for _, tensor in weights_of(model))
    assert not report.incidents


def test_one_actor_samples_the_same(ray_session: None, expected_answers: Expected) -> None:
    """First, for the pool of the tests that follow fills the cluster."""
    with RolloutPool(
        expected_answers.spec, actors=1, cpus_per_actor=1, timeout_s=TIMEOUT_S
    ) as alone:
        load_weights(alone, OLD)
        found = alone.generate(batches(), SAMPLING)
        assert sampled(found) == expected_answers.expected[OLD, 0]
        assert not found.incidents


def test_two_actors_sample_what_none_does(pool: RolloutPool, expected_answers: Expected) -> None:
    with pytest.raises(RolloutError, match="call sync first"):
        pool.generate(batches(), SAMPLING)
    load_weights(pool, OLD)
    for step in (0, 1, 0):
        found = pool.generate(batches(step), SAMPLING)
        assert sampled(found) == expected_answers.expected[OLD, step]
        assert {result.version for result in found.results} == {OLD}
        assert not found.incidents
    assert pool.generate([], SAMPLING).results == ()


def test_the_next_answers_are_sampled_while_the_policy_learns(
    pool: RolloutPool, expected_answers: Expected
) -> None:
    policy = tiny_model(seed=OLD)
    pool.sync(weights_of(policy), OLD)
    pool.start_generate(batches(1), SAMPLING)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    for call in (
        lambda: pool.sync(weights_of(policy), 9),
        lambda: pool.start_generate(batches(0), SAMPLING),
    ):
        with pytest.raises(RolloutError, match="collect it first"):
            call()
    assert sampled(pool.collect()) == expected_answers.expected[OLD, 1]
    with pytest.raises(RolloutError, match="call start_generate first"):
        pool.collect()
    load_weights(pool, NEW)
    assert sampled(pool.generate(batches(1), SAMPLING)) == expected_answers.expected[NEW, 1]


@pytest.mark.chaos
def test_an_actor_killed_in_the_midst_of_a_batch_changes_no_answer(
    pool: RolloutPool, expected_answers: Expected
) -> None:
    load_weights(pool, OLD)
    lost = batches()[1]
    order(expected_answers.orders, lost, "SIGKILL")
    found = pool.generate(batches(), SAMPLING)
    assert sampled(found) == expected_answers.expected[OLD, 0]
    (incident,) = found.incidents
    assert incident.work == f"sampling batch 1, a {lost}"
    load_weights(pool, NEW)  # to the one that took its place as well
    assert sampled(pool.generate(batches(), SAMPLING)) == expected_answers.expected[NEW, 0]


@pytest.mark.chaos
def test_a_pool_closes_while_it_works(pool: RolloutPool, expected_answers: Expected) -> None:
    load_weights(pool, OLD)
    path = order(expected_answers.orders, batches()[0], "SIGSTOP")
    pool.start_generate(batches(), SAMPLING)
    pool.close()
    path.unlink(missing_ok=True)  # where it closed before the order was read
    with pytest.raises(RolloutError, match="has been closed"):
        pool.collect()
