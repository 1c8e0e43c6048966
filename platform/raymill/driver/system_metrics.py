"""Use of the machines of a run: processor, memory, GPUs.

The driver reads its own machine. On each other node where the run has workers or actors, an actor reads, which
takes no resources and lives as long as the run is followed. Other nodes get no actor, so that an autoscaler can
still remove an idle one. The cost is one process per node and one small call to each per reading.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import psutil

from raymill.engine.resolved_run import ResolvedRun
from raymill.track.follow import Follower

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

READ_S = 5.0  # a node that takes longer is left out of this reading
# Nodes with metrics of their own; of more, only the minimum, mean and maximum are kept.
MOST_NAMED = 16
_GPU_NUMBER = re.compile(r"gpu_\d+_")


def machine_readings() -> dict[str, float]:
    """Read processor, memory and GPU use of this machine; processor use since the last call."""
    memory = psutil.virtual_memory()
    return {
        "cpu_percent": psutil.cpu_percent(),
        "memory_used_gib": memory.used / 2**30,
        "memory_percent": memory.percent,
        **_gpu_readings(),
    }


def _gpu_readings() -> dict[str, float]:
    nvml = _nvml()
    if nvml is None:
        return {}
    readings: dict[str, float] = {}
    for number in range(nvml.nvmlDeviceGetCount()):
        # A partition of a GPU doesn't support every query; the others are still made.
        with suppress(nvml.NVMLError):
            device = nvml.nvmlDeviceGetHandleByIndex(number)
            memory = nvml.nvmlDeviceGetMemoryInfo(device)
            readings[f"gpu_{number}_memory_used_gib"] = memory.used / 2**30
            readings[f"gpu_{number}_memory_percent"] = 100 * memory.used / memory.total
            with suppress(nvml.NVMLError):
                readings[f"gpu_{number}_percent"] = nvml.nvmlDeviceGetUtilizationRates(device).gpu
            with suppress(nvml.NVMLError):
                readings[f"gpu_{number}_watts"] = nvml.nvmlDeviceGetPowerUsage(device) / 1000
    return readings


@cache
def _nvml() -> ModuleType | None:
    """Return NVIDIA's library, through the bindings that Ray brings; None on a machine without it."""
    from ray._private.thirdparty import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    module: ModuleType = pynvml
    return module


class MachineReader:
    """Actor that reads another node's metrics."""

    def __init__(self) -> None:
        # Processor use is measured since the previous call; the first reading starts here.
        psutil.cpu_percent()

    def read(self) -> dict[str, float]:
        """See `machine_readings`."""
        return machine_readings()


@dataclass
class _Node:
    """Another node: its name among the metrics, its reader, and the pending reading."""

    name: str
    reader: ActorHandle
    pending: ObjectRef | None = None


@dataclass
class SystemMetrics:
    """Metrics of all machines of the run, named as in MLflow; call it to read them.

    `system/cpu_percent` is the driver's, `system/<host>/gpu_0_percent` another machine's. A metric that
    can't be read is left out. Without a connection to Ray, only this machine is read.
    """

    resolved: ResolvedRun
    _nodes: dict[str, _Node] = field(default_factory=dict, init=False)
    _hosts: dict[str, str] = field(default_factory=dict, init=False)  # by ids of the run's nodes

    def __post_init__(self) -> None:
        psutil.cpu_percent()
        self._follower = Follower.at_end(self.resolved.event_log)
        rl = self.resolved.rl
        self._actors = _hosts_of(() if rl is None else rl.scheduling_strategies)
        self._hosts = dict(self._actors)

    def __call__(self) -> dict[str, float]:
        named = {f"system/{name}": value for name, value in machine_readings().items()}
        others = self._others()
        if len(others) > MOST_NAMED:
            spread = summary(list(others.values()))
            return named | {f"system/others/{name}": value for name, value in spread.items()}
        for host, readings in others.items():
            named |= {f"system/{host}/{name}": value for name, value in readings.items()}
        return named

    def close(self) -> None:
        """End the readers."""
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):
            while self._nodes:
                ray.kill(self._nodes.popitem()[1].reader)

    def _others(self) -> dict[str, dict[str, float]]:
        """Read the other nodes; return their readings by host."""
        import ray
        from ray.exceptions import RayError

        if not ray.is_initialized():
            return {}
        with suppress(RayError):
            self._follow_workers()
            self._set_up_readers(ray.get_runtime_context().get_node_id())
            return self._read()
        return {}

    def _follow_workers(self) -> None:
        for event in self._follower.read():
            if event["kind"] == "attempt":
                workers = {rank["node"]: rank["host"] for rank in event["ranks"]}
                self._hosts = {**self._actors, **workers}

    def _set_up_readers(self, own: str) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for node_id in set(self._nodes) - set(self._hosts):
            ray.kill(self._nodes.pop(node_id).reader)
        actor = ray.remote(num_cpus=0)(MachineReader)
        for node_id, host in self._hosts.items():
            if node_id not in (own, *self._nodes):
                there = NodeAffinitySchedulingStrategy(node_id, soft=False)
                # In a simulated cluster, several nodes run on one host.
                taken = any(node.name == host for node in self._nodes.values())
                self._nodes[node_id] = _Node(
                    f"{host}-{node_id[:6]}" if taken else host,
                    actor.options(scheduling_strategy=there).remote(),
                )

    def _read(self) -> dict[str, dict[str, float]]:
        import ray
        from ray.exceptions import RayError

        for node in self._nodes.values():
            # A slow node's previous reading may still be pending.
            if node.pending is None:
                node.pending = node.reader.read.remote()
        calls = [node.pending for node in self._nodes.values()]
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=READ_S) if calls else ([], [])
        readings: dict[str, dict[str, float]] = {}
        for node_id, node in list(self._nodes.items()):
            if node.pending not in ready:
                continue
            try:
                readings[node.name] = ray.get(node.pending)
                node.pending = None
            except RayError:
                # The node is lost; the next attempt's event names the nodes on which the run continues.
                del self._nodes[node_id]
                self._hosts.pop(node_id)
        return readings


def summary(readings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the minimum, mean and maximum of each metric over several machines, and over all their GPUs."""
    values: dict[str, list[float]] = {}
    for machine in readings:
        for name, value in machine.items():
            values.setdefault(_GPU_NUMBER.sub("gpu_", name), []).append(value)
    kinds: dict[str, Callable[[list[float]], float]] = {
        "least": min,
        "mean": statistics.fmean,
        "most": max,
    }
    return {
        f"{name}/{kind}": float(aggregate(machines))
        for name, machines in values.items()
        for kind, aggregate in kinds.items()
    }


def _hosts_of(strategies: Sequence[PlacementGroupSchedulingStrategy]) -> dict[str, str]:
    """Return node id → host of the nodes on which actors are placed."""
    if not strategies:
        return {}
    import ray
    from ray.util import placement_group_table

    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    named = {}
    for strategy in strategies:
        nodes = placement_group_table(strategy.placement_group)["bundles_to_node_id"]
        node_id = nodes[strategy.placement_group_bundle_index]
        named[node_id] = hosts.get(node_id, "?")
    return named
