"""Heartbeats that are read on the nodes of a run, and what the watchdog hears of a node that is silent."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from raymill.cluster.lean_trainer import START_S, fit_limits
from raymill.driver.heartbeats import MOST_S, HeartbeatReaders, NodeHeartbeats
from raymill.engine.heartbeat import Heartbeat, heartbeat_folder, read_heartbeats


@pytest.fixture
def start() -> str:
    return f"{uuid.uuid4().hex[:16]}-1.2"


def wait_for(found: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_this_nodes_heartbeats_are_read_here(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymill.driver.heartbeats._own_node", lambda: "here")
    earlier = heartbeat_folder(start.replace(".2", ".1"), "here")
    later = heartbeat_folder(start.replace("1.2", "2.1"), "here")
    for folder in (earlier, later):
        Heartbeat(folder, 0).beat("data")
    readers = HeartbeatReaders(start)
    assert readers.read() == {}
    folder = heartbeat_folder(start, "here")
    for rank in (0, 3):
        Heartbeat(folder, rank).beat("forward")
    assert readers.interval_s == 0.0, "nobody is asked"
    records = readers.read()
    assert records is not None
    assert {rank: record["phase"] for rank, record in records.items()} == {
        0: "forward",
        3: "forward",
    }
    readers.close()
    assert not folder.exists() and not earlier.exists()
    assert later.exists(), "another holder of the run has started it since"
    HeartbeatReaders(start.replace("1.2", "2.1")).close()
    assert not later.exists()


def test_other_nodes_heartbeats_are_read_there(
    ray_session: None, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    node = ray.get_runtime_context().get_node_id()
    monkeypatch.setattr("raymill.driver.heartbeats._own_node", lambda: "elsewhere")
    monkeypatch.setattr("raymill.driver.heartbeats.RESTART_S", 0.5)
    folder = heartbeat_folder(start, node)
    Heartbeat(folder, 5).beat("data")
    readers = HeartbeatReaders(start)
    readers.follow([node, "elsewhere"])
    assert list(readers._readers) == [node]
    assert readers.read() is None, "no node has answered yet"
    records: dict[int, Any] = {}
    wait_for(lambda: bool(records.update(readers.read() or {}) or records))
    assert records[5]["phase"] == "data"
    # A reader that dies is replaced, and what it has read stays. It still answers for a moment.
    first = readers._readers[node].actor
    ray.kill(first)
    wait_for(lambda: not _alive(first))
    Heartbeat(folder, 5).beat("forward")
    wait_for(lambda: (readers.read() or {5: records[5]})[5]["phase"] == "forward")
    readers.close()
    assert read_heartbeats(folder) == {} and not folder.exists()


def _alive(actor: Any) -> bool:
    import ray
    from ray.exceptions import RayActorError

    try:
        ray.get(actor.read.remote())
    except RayActorError:
        return False
    return True


def test_a_thousand_nodes_are_asked_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymill.driver.heartbeats._own_node", lambda: "here")
    monkeypatch.setattr("raymill.driver.heartbeats._start_reader", lambda start, node: None)
    readers = HeartbeatReaders("run-1.1")
    readers.follow(f"node {number}" for number in range(400))
    assert readers.interval_s == 2.0
    readers.follow(f"node {number}" for number in range(4000))
    assert readers.interval_s == MOST_S


def test_an_actor_reads_its_nodes_folder(start: str) -> None:
    Heartbeat(heartbeat_folder(start, "there"), 1).beat("data")
    reader = NodeHeartbeats(start, "there")
    assert list(reader.read()) == [1]
    assert NodeHeartbeats(start, "here").read() == {}, "the node is part of the path"
    reader.remove()
    assert reader.read() == {}


def test_rays_limits_fit_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    start_s, interval_s = (
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
    )
    monkeypatch.delenv(start_s, raising=False)
    monkeypatch.setenv(interval_s, "0.2")
    fit_limits(2)
    assert float(os.environ[start_s]) == START_S + 0.2
    assert float(os.environ[interval_s]) == 0.2, "what a local Ray sets stays"
    fit_limits(8192)
    assert float(os.environ[start_s]) == pytest.approx(879.2)
    assert float(os.environ[interval_s]) == pytest.approx(16.4, abs=0.1)
    monkeypatch.setenv(start_s, "3600")
    fit_limits(8)
    assert float(os.environ[start_s]) == 3600.0, "what the user sets stays"
