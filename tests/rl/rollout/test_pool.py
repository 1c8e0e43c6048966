"""Answers are bit for bit the same with no actor, one or two, and whatever happens to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from raymill.rl.rollout.failure import RolloutError
from raymill.rl.rollout.local import LocalPool
from raymill.rl.rollout.pool import RolloutPool
from raymill.rl.rollout.weights import weights_digest
from rl.rollout.faults import FaultySpec, order
from rl.rollout.tiny import (
    SAMPLING,
    VOCAB_SIZE,
    folder_of,
    sampled,
    tiny_model,
    units,
    weights_of,
)

TIMEOUT_S = 60.0
OLD, NEW = 1, 2  # seeds of models


@dataclass(frozen=True)
class Crewed:
    spec: FaultySpec
    orders: Path
    expected: dict[
        tuple[int, int], Any
    ]  # (model's seed, step) → what a pool without actors samples


@pytest.fixture(scope="module")
def crewed(tmp_path_factory: pytest.TempPathFactory) -> Crewed:
    folder, orders = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("orders")
    spec = FaultySpec(
        folder_of(tiny_model(), folder), VOCAB_SIZE, "sdpa", "fp32", threads=1, orders=str(orders)
    )
    local, expected = LocalPool(spec), {}
    for seed in (OLD, NEW):
        local.sync(weights_of(tiny_model(seed=seed)), seed)
        for step in (0, 1):
            expected[seed, step] = sampled(local.generate(units(step), SAMPLING))
    assert expected[OLD, 0] != expected[NEW, 0]
    return Crewed(spec, orders, expected)


@pytest.fixture(scope="module")
def pool(ray_session: None, crewed: Crewed) -> Iterator[RolloutPool]:
    """Two actors, which fill the cluster: one that is replaced must have left its place."""
    with RolloutPool(
        crewed.spec, actors=2, cpus_per_actor=1, timeout_s=TIMEOUT_S, bucket_bytes=20_000
    ) as pool:
        yield pool


def load_weights(pool: RolloutPool, seed: int) -> None:
    model = tiny_model(seed=seed)
    report = pool.sync(weights_of(model), version=seed)
    assert (report.version, report.digest) == (seed, weights_digest(weights_of(model)))
    assert report.bytes == sum(tensor.nbytes for _, tensor in weights_of(model))
    assert not report.incidents


def test_one_actor_samples_the_same(ray_session: None, crewed: Crewed) -> None:
    """First, for the pool of the tests that follow fills the cluster."""
    with RolloutPool(crewed.spec, actors=1, cpus_per_actor=1, timeout_s=TIMEOUT_S) as alone:
        load_weights(alone, OLD)
        found = alone.generate(units(), SAMPLING)
        assert sampled(found) == crewed.expected[OLD, 0]
        assert not found.incidents


def test_two_actors_sample_what_none_does(pool: RolloutPool, crewed: Crewed) -> None:
    with pytest.raises(RolloutError, match="call sync first"):
        pool.generate(units(), SAMPLING)
    load_weights(pool, OLD)
    for step in (0, 1, 0):
        found = pool.generate(units(step), SAMPLING)
        assert sampled(found) == crewed.expected[OLD, step]
        assert {result.version for result in found.results} == {OLD}
        assert not found.incidents
    assert pool.generate([], SAMPLING).results == ()


def test_the_next_answers_are_sampled_while_the_policy_learns(
    pool: RolloutPool, crewed: Crewed
) -> None:
    policy = tiny_model(seed=OLD)
    pool.sync(weights_of(policy), OLD)
    pool.start_generate(units(1), SAMPLING)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    for call in (
        lambda: pool.sync(weights_of(policy), 9),
        lambda: pool.start_generate(units(0), SAMPLING),
    ):
        with pytest.raises(RolloutError, match="collect it first"):
            call()
    assert sampled(pool.collect()) == crewed.expected[OLD, 1]
    with pytest.raises(RolloutError, match="call start_generate first"):
        pool.collect()
    load_weights(pool, NEW)
    assert sampled(pool.generate(units(1), SAMPLING)) == crewed.expected[NEW, 1]


@pytest.mark.chaos
def test_an_actor_killed_in_the_midst_of_a_unit_changes_no_answer(
    pool: RolloutPool, crewed: Crewed
) -> None:
    load_weights(pool, OLD)
    lost = units()[1]
    order(crewed.orders, lost, "SIGKILL")
    found = pool.generate(units(), SAMPLING)
    assert sampled(found) == crewed.expected[OLD, 0]
    (incident,) = found.incidents
    assert incident.work == f"sampling unit 1, a {lost}"
    load_weights(pool, NEW)  # to the one that took its place as well
    assert sampled(pool.generate(units(), SAMPLING)) == crewed.expected[NEW, 0]


@pytest.mark.chaos
def test_a_pool_closes_while_it_works(pool: RolloutPool, crewed: Crewed) -> None:
    load_weights(pool, OLD)
    path = order(crewed.orders, units()[0], "SIGSTOP")
    pool.start_generate(units(), SAMPLING)
    pool.close()
    path.unlink(missing_ok=True)  # where it closed before the order was read
    with pytest.raises(RolloutError, match="has been closed"):
        pool.collect()
