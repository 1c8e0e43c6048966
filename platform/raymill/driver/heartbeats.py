"""Reading of the heartbeats of a start's ranks, on the nodes that they run on.

The driver reads the files of its own node. On each other node of the run an actor reads them, which takes no
resources and lives as long as the attempt. All nodes are asked at once, and none is waited for: the records of
a node that doesn't answer stay as they are, so its ranks make no progress.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymill.engine.heartbeat import (
    NODE,
    HeartbeatRecord,
    heartbeat_folder,
    read_heartbeats,
    remove_heartbeats,
)

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

# A call takes 0.37 ms of the driver.
CALLS_PER_S = 200
# Below the pause after which the watchdog takes the time as lost.
MOST_S = 5.0
# Between two starts of a reader on a node, which may be lost.
RESTART_S = 10.0
# Time for the actors to delete their nodes' files at the end of an attempt.
_REMOVE_S = 2.0


class NodeHeartbeats:
    """Actor that reads the heartbeats on its node."""

    def __init__(self, start: str, node: str) -> None:
        self._folder = heartbeat_folder(start, node)

    def read(self) -> dict[int, HeartbeatRecord]:
        """See `read_heartbeats`."""
        return read_heartbeats(self._folder)

    def remove(self) -> None:
        """See `remove_heartbeats`."""
        remove_heartbeats(self._folder)


@dataclass
class _Reader:
    actor: ActorHandle
    started: float
    pending: ObjectRef | None = None
    lost: bool = False


class HeartbeatReaders:
    """Heartbeats of one start, from its own node and from those named by `follow`."""

    def __init__(self, start: str) -> None:
        self._start = start
        self._own = _own_node()
        self._readers: dict[str, _Reader] = {}
        self._records: dict[int, HeartbeatRecord] = {}

    @property
    def interval_s(self) -> float:
        """Time between two reads, with which the driver's work doesn't grow with the number of nodes."""
        return min(MOST_S, len(self._readers) / CALLS_PER_S)

    def follow(self, nodes: Iterable[str]) -> None:
        """Read on these nodes from now on."""
        for node in nodes:
            if node not in (self._own, *self._readers):
                self._readers[node] = _Reader(_start_reader(self._start, node), time.monotonic())

    def read(self) -> Mapping[int, HeartbeatRecord] | None:
        """Return rank → latest record; None where no node has answered since the last call.

        Raises:
            StorageError: the files of this node can't be read, which says nothing about the ranks.
        """
        here = read_heartbeats(heartbeat_folder(self._start, self._own))
        self._records |= here
        answered = self._collect() if self._readers else True
        return self._records if here or answered else None

    def close(self) -> None:
        """End the readers, and delete the heartbeats."""
        remove_heartbeats(heartbeat_folder(self._start, self._own))
        if not self._readers:
            return
        import ray
        from ray.exceptions import RayError

        # The connection may have ended with the job.
        if not ray.is_initialized():
            return
        with suppress(RayError):
            calls = [reader.actor.remove.remote() for reader in self._readers.values()]
            ray.wait(calls, num_returns=len(calls), timeout=_REMOVE_S)
            while self._readers:
                ray.kill(self._readers.popitem()[1].actor)

    def _collect(self) -> bool:
        """Take the answers that have come, and ask again; return True if there was one."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        calls = [r.pending for r in self._readers.values() if r.pending is not None]
        ready = set(ray.wait(calls, num_returns=len(calls), timeout=0)[0]) if calls else set()
        answered = False
        for node, reader in self._readers.items():
            if reader.pending in ready:
                try:
                    self._records |= ray.get(reader.pending)
                    answered = True
                except RayTaskError:
                    # The node's files can't be read now.
                    pass
                except RayError:
                    # The actor is lost, perhaps with its node.
                    reader.lost = True
                reader.pending = None
            if reader.lost and time.monotonic() > reader.started + RESTART_S:
                reader.actor, reader.lost = _start_reader(self._start, node), False
                reader.started = time.monotonic()
            if reader.pending is None and not reader.lost:
                reader.pending = reader.actor.read.remote()
        return answered


def _own_node() -> str:
    import ray

    if not ray.is_initialized():
        return os.environ.get(NODE, "")
    node: str = ray.get_runtime_context().get_node_id()
    return node


def _start_reader(start: str, node: str) -> ActorHandle:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Another node hasn't the files.
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=there)(NodeHeartbeats)
    return actor.remote(start, node)
