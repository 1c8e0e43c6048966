"""Capacity of the cluster, and the number of workers that a run takes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raymill.cluster.capacity import largest_fit, requesting_capacity, workers_that_fit
from raymill.cluster.session import ActorResources
from raymill.config.compose import load
from raymill.driver import supervisor as attempts
from raymill.engine.resolved_run import ResolvedRun
from raymill.errors import ClusterError, ConfigError
from raymill.plan.batch import allowed_workers
from raymill.schema.sections import ClusterConfig
from raymill.schema.tree import digest, flatten
from sections import plain


def test_the_most_that_the_batch_allows() -> None:
    assert largest_fit([2, 4, 8], 7) == 4
    assert largest_fit([2, 4, 8], 100) == 8
    assert largest_fit([2, 4, 8], 1) is None


def test_workers_fit_node_by_node_once_the_actors_have_theirs() -> None:
    cluster = plain(ClusterConfig, "x", "auto", cpus_per_worker=2.0)
    assert workers_that_fit([{"CPU": 5.0}, {"CPU": 3.0}], cluster, ActorResources()) == 3
    assert workers_that_fit([{"CPU": 5.0}, {"CPU": 3.0}], cluster, ActorResources(3, 1.0)) == 2
    gpus = plain(ClusterConfig, "x", "auto", gpu=True, cpus_per_worker=1.0)
    assert workers_that_fit([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0}], gpus, ActorResources()) == 8
    assert workers_that_fit([], gpus, ActorResources()) == 0
    # Of 8 GPUs, the memory of the node is enough for 3 workers.
    node = {"CPU": 64.0, "GPU": 8.0, "memory": 100e9}
    assert workers_that_fit([node], gpus, ActorResources(), 30e9) == 3


def test_a_range_of_workers() -> None:
    text = ["train.global_batch=24", "train.micro_batch=2", "storage.root=/nowhere"]
    job = load("pretrain", ["run.workers=2..9", *text])
    assert (job.run.least, job.run.most) == (2, 9)
    assert allowed_workers(job) == [2, 3, 4, 6]
    for refused, why in (
        ("run.workers=9..2", "expected a number of at least 1, or least..most"),
        ("run.workers=few", "expected a number of at least 1, or least..most"),
        ("run.workers=7..11", "can't be divided among any such number of workers"),
    ):
        with pytest.raises(ConfigError, match=why):
            load("pretrain", [refused, *text])


class Quiet:
    """A lease, a console and a history in one, of a run whose cluster has shrunk."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def check(self) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


def test_without_room_it_waits_and_then_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = iter([1, 1, 5])
    monkeypatch.setattr(attempts, "worker_capacity", lambda *_: next(rooms, 1))
    monkeypatch.setattr(attempts, "POLL_S", 0.01)
    wishes: list[int] = []

    @contextmanager
    def requesting_capacity(workers: int, _: ClusterConfig) -> Iterator[None]:
        wishes.append(workers)
        yield

    monkeypatch.setattr(attempts, "requesting_capacity", requesting_capacity)
    training = load("pretrain", ["run.workers=2..4", "train.global_batch=8", "train.micro_batch=1"])
    resolved = ResolvedRun(
        training, tmp_path, tmp_path, (), (), 1, flatten(training), digest(training)
    )
    quiet: Any = Quiet()
    run = attempts.RunSupervisor(resolved, quiet, quiet, quiet, "the same command")
    assert run._wait_for_room() == 4
    waiting = "waiting: the cluster has room for 1 workers, the run takes one of 2, 4 …"
    assert quiet.said == [waiting], "once"
    assert wishes == [2], "of an autoscaler, the fewest"
    monkeypatch.setattr(attempts, "ROOM_S", 0.1)
    with pytest.raises(ClusterError, match="had room for 1 workers for 0 s, and the run takes one"):
        run._wait_for_room()


def test_what_is_waited_for_is_what_an_autoscaler_sees(ray_session: None) -> None:
    from ray.util import placement_group_table

    cluster = plain(ClusterConfig, "x", "auto", cpus_per_worker=1.0)
    with requesting_capacity(64, cluster):
        [group] = [
            found for found in placement_group_table().values() if found["state"] == "PENDING"
        ]
        assert sorted(str(bundle) for bundle in group["bundles"].values()) == sorted(
            [*["{'CPU': 1.0}"] * 64, "{'CPU': 0.5}"]
        )
    states = {found["state"] for found in placement_group_table().values()}
    assert "PENDING" not in states
