"""Loss of actors: noticed in time, reported, and repaired as often as makes sense."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raymill.errors import ClusterError, ConfigError
from raymill.rl.rollout import actor_pool
from raymill.rl.rollout.engine import RolloutError
from raymill.rl.rollout.pool import LocalPool, RolloutPool
from rl.rollout.faults import ToySpec, order
from rl.rollout.tiny import SAMPLING, batches, sampled

TIMEOUT_S = 4.0
WEIGHTS = {"a": torch.arange(5.0), "b": torch.ones(2, 2)}


@pytest.fixture
def spawn(ray_session: None, tmp_path: Path) -> Iterator[Callable[..., RolloutPool]]:
    """Pools of engines that follow the orders in the test's folder."""
    pools: list[RolloutPool] = []

    def start(actors: int, **changes: Any) -> RolloutPool:
        settings = {"cpus_per_actor": 1, "timeout_s": TIMEOUT_S, **changes}
        pools.append(RolloutPool(ToySpec(tmp_path), actors=actors, **settings))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()


def answers(folder: Path, step: int = 0, weights: dict[str, torch.Tensor] = WEIGHTS) -> Any:
    """Return the answers of engines with these weights."""
    local = LocalPool(ToySpec(folder))
    local.sync(weights.items(), 0)
    return sampled(local.generate(batches(step), SAMPLING))


@pytest.mark.chaos
def test_an_actor_that_hangs_is_named_and_replaced(
    spawn: Callable[..., RolloutPool], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = spawn(2)
    pool.sync(WEIGHTS.items(), 7)
    hung = batches()[1]
    order(tmp_path, hung, "SIGSTOP")
    with caplog.at_level(logging.WARNING):
        found = pool.generate(batches(), SAMPLING)
    assert sampled(found) == answers(tmp_path)
    assert {result.version for result in found.results} == {7}
    (incident,) = found.incidents
    assert incident.reason == "no answer within 4 s"
    assert incident.work == f"sampling batch 1, a {hung}"
    *role, number, actor_id = incident.actor.split()
    assert role == ["rollout", "actor"]
    assert number in ("0", "1")
    assert len(actor_id.strip("()")) == 32
    assert "(node " in incident.place
    assert str(incident) in caplog.text

    pool.sync(WEIGHTS.items(), 8)
    pid = int(incident.place.split("pid ")[1].rstrip(")"))
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline, "it had only stopped, and is killed all the same"
        time.sleep(0.1)
    found = pool.generate(batches(1), SAMPLING)
    assert sampled(found) == answers(tmp_path, 1)
    assert not found.incidents


@pytest.mark.chaos
def test_a_successor_has_the_weights_of_its_predecessor_and_a_deadly_batch_ends_the_run(
    spawn: Callable[..., RolloutPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_pool, "TRIES", 2)
    pool = spawn(1)
    policy = {name: tensor.clone() for name, tensor in WEIGHTS.items()}
    pool.sync(policy.items(), 1)
    order(tmp_path, batches()[0], "SIGKILL")
    pool.start_generate(batches(), SAMPLING)
    policy["a"].zero_()
    found = pool.collect()
    assert sampled(found) == answers(tmp_path)
    (incident,) = found.incidents
    assert "its worker process has died" in incident.reason
    order(tmp_path, batches()[2], "SIGKILL always")
    with pytest.raises(
        RolloutError, match=r"lost 2 times. The last: rollout actor 0 .*batch 2, a batch of"
    ):
        pool.generate(batches(), SAMPLING)
    with pytest.raises(RolloutError, match="has been closed, or ended by an error"):
        pool.generate(batches(), SAMPLING)


def test_an_engines_own_error_is_not_tried_again(
    spawn: Callable[..., RolloutPool], tmp_path: Path
) -> None:
    pool = spawn(1)
    pool.sync(WEIGHTS.items(), 1)
    order(tmp_path, batches()[3], "break")
    message = r"^rollout actor 0 \(\w+\) on .* failed sampling batch 3, .*ZeroDivisionError: in the engine"
    with pytest.raises(RolloutError, match=message):
        pool.generate(batches(), SAMPLING)


def test_other_weights_than_the_policys_are_refused(
    spawn: Callable[..., RolloutPool], tmp_path: Path
) -> None:
    pool = spawn(1)
    before = pool.sync(WEIGHTS.items(), 1)
    other = WEIGHTS | {"a": torch.zeros(5)}
    assert pool.sync(other.items(), 1).digest != before.digest
    assert sampled(pool.generate(batches(), SAMPLING)) == answers(tmp_path, weights=other), (
        "the same number doesn't make them the same weights"
    )
    (tmp_path / "corrupt").touch()
    with pytest.raises(
        RolloutError, match=r"rollout actor . \(\w+\) on .* holds weights with digest"
    ):
        pool.sync(WEIGHTS.items(), 2)
    with pytest.raises(RolloutError, match="call sync first"):
        pool.generate(batches(), SAMPLING)


def test_what_cannot_start_is_told_at_once(
    spawn: Callable[..., RolloutPool], tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match=r"rollout\.actors=9 need 9 CPUs, the cluster has 8"):
        spawn(9)
    with pytest.raises(ClusterError, match="need 1 GPUs, the cluster has 0"):
        spawn(1, gpus_per_actor=1)
    with pytest.raises(
        RolloutError, match=r"starting: no answer within 0.01 s.*Free in the cluster"
    ):
        spawn(1, start_timeout_s=0.01)
    (tmp_path / "build").touch()
    with pytest.raises(ConfigError, match="no such model"):
        spawn(1)
