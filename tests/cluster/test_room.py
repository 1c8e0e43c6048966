"""How many workers a run takes of those that there is room for."""

from __future__ import annotations

import pytest

from raymill.cluster.room import choose, fitting
from raymill.cluster.session import Beside
from raymill.config.compose import load
from raymill.config.schema import ClusterConfig
from raymill.errors import ConfigError
from raymill.plan.batch import allowed_workers


def test_the_most_that_the_batch_allows() -> None:
    assert choose([2, 4, 8], 7) == 4
    assert choose([2, 4, 8], 100) == 8
    assert choose([2, 4, 8], 1) is None


def test_workers_fit_node_by_node_once_the_actors_have_theirs() -> None:
    cluster = ClusterConfig("x", "auto", cpus_per_worker=2.0)
    assert fitting([{"CPU": 5.0}, {"CPU": 3.0}], cluster, Beside()) == 3
    assert fitting([{"CPU": 5.0}, {"CPU": 3.0}], cluster, Beside(3, 1.0)) == 2
    gpus = ClusterConfig("x", "auto", gpu=True, cpus_per_worker=1.0)
    assert fitting([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0}], gpus, Beside()) == 8
    assert fitting([], gpus, Beside()) == 0


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
