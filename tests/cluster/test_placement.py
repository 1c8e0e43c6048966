"""Actors' room is theirs until the job ends, and is given back then."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from raymill.cluster import placement
from raymill.cluster.placement import reserved
from raymill.cluster.session import NO_ACTORS, ActorResources
from raymill.errors import ClusterError
from raymill.rl.rollout.pool import RolloutPool
from rl.rollout.faults import ToySpec
from rl.rollout.test_actor_pool import WEIGHTS, answers
from rl.rollout.tiny import SAMPLING, sampled, units


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))


def test_actors_sit_in_the_room_that_was_reserved_for_them(
    ray_session: None, tmp_path: Path
) -> None:
    before = free_cpus()
    with reserved(ActorResources(2, 1.0)) as room:
        assert free_cpus() == before - 2, "nobody else gets it"
        assert len(room.places) == 2
        assert room.spelled(0, 2).endswith("(2)")
        assert room.spelled(1, 1) == room.hosts[1] != "?"
        with RolloutPool(
            ToySpec(tmp_path), actors=2, cpus_per_actor=1, timeout_s=30, places=room.places
        ) as pool:
            pool.sync(WEIGHTS.items(), 1)
            assert sampled(pool.generate(units(), SAMPLING)) == answers(tmp_path)
    with reserved(ActorResources(2, 1.0)):
        pass  # it was given back


def test_no_room_is_said(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(placement, "PATIENCE_S", 0.2)
    monkeypatch.setattr(placement, "RESERVE_S", 0.2)
    with (
        pytest.raises(ClusterError, match="no room for 5 actors of 2 CPUs"),
        reserved(ActorResources(5, 2.0)),
    ):
        raise AssertionError("it has eight")
    assert "waiting for room for 5 actors of 2 CPUs and 0 GPUs" in capsys.readouterr().out


def test_who_needs_nothing_reserves_nothing() -> None:
    for beside in (NO_ACTORS, ActorResources(2)):
        with reserved(beside) as room:
            assert room.places == room.hosts == ()
