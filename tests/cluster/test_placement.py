"""Reserve resources for actors until the job ends, and release them then."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from raymill.cluster import placement
from raymill.cluster.placement import reserve_actors
from raymill.cluster.session import NO_ACTORS, ActorResources
from raymill.errors import ClusterError
from raymill.rl.rollout.pool import RolloutPool
from rl.rollout.faults import ToySpec
from rl.rollout.test_actor_pool import WEIGHTS, answers
from rl.rollout.tiny import SAMPLING, batches, sampled


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))


def test_actors_run_on_the_resources_that_were_reserved_for_them(
    ray_session: None, tmp_path: Path
) -> None:
    before = free_cpus()
    with reserve_actors(ActorResources(2, 1.0)) as actors:
        assert free_cpus() == before - 2, "nobody else gets it"
        assert len(actors.scheduling_strategies) == 2
        assert actors.describe_hosts(0, 2).endswith("(2)")
        assert actors.describe_hosts(1, 1) == actors.hosts[1] != "?"
        with RolloutPool(
            ToySpec(tmp_path),
            actors=2,
            cpus_per_actor=1,
            timeout_s=30,
            scheduling_strategies=actors.scheduling_strategies,
        ) as pool:
            pool.sync(WEIGHTS.items(), 1)
            assert sampled(pool.generate(batches(), SAMPLING)) == answers(tmp_path)
    with reserve_actors(ActorResources(2, 1.0)):
        pass  # the resources were released


def test_missing_resources_are_reported(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(placement, "NOTICE_AFTER_S", 0.2)
    monkeypatch.setattr(placement, "TIMEOUT_S", 0.2)
    with (
        pytest.raises(ClusterError, match="no resources for 5 actors of 2 CPUs"),
        reserve_actors(ActorResources(5, 2.0)),
    ):
        raise AssertionError("it has eight")
    assert "waiting for resources for 5 actors of 2 CPUs and 0 GPUs" in capsys.readouterr().out


def test_actors_without_needs_reserve_nothing() -> None:
    for actor_resources in (NO_ACTORS, ActorResources(2)):
        with reserve_actors(actor_resources) as actors:
            assert actors.scheduling_strategies == actors.hosts == ()
