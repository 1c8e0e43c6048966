"""Use of the machines of a run: processor, memory, GPUs.

The driver reads its own. On each other node where the run has workers or actors an actor reads, which takes no
resources and lives as long as the run is followed; nodes of others are left alone, so that an idle one may
still be given back. Cost: one such process per node, one small call to each per reading.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import psutil

from raymill.engine.resolved_run import ResolvedRun
from raymill.track.follow import Follower

READ_S = 5.0  # a node that takes longer is left out this time
# Nodes with figures of their own; of more, the least, the mean and the most are kept.
MOST_NAMED = 16
_GPU_NUMBER = re.compile(r"gpu_\d+_")


def machine_readings() -> dict[str, float]:
    """Processor, memory and GPU use of this machine; processor use since the last call."""
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
    found: dict[str, float] = {}
    for number in range(nvml.nvmlDeviceGetCount()):
        # One that can't be asked this, as a part of a GPU can't, tells the rest.
        with suppress(nvml.NVMLError):
            device = nvml.nvmlDeviceGetHandleByIndex(number)
            memory = nvml.nvmlDeviceGetMemoryInfo(device)
            found[f"gpu_{number}_memory_used_gib"] = memory.used / 2**30
            found[f"gpu_{number}_memory_percent"] = 100 * memory.used / memory.total
            with suppress(nvml.NVMLError):
                found[f"gpu_{number}_percent"] = nvml.nvmlDeviceGetUtilizationRates(device).gpu
            with suppress(nvml.NVMLError):
                found[f"gpu_{number}_watts"] = nvml.nvmlDeviceGetPowerUsage(device) / 1000
    return found


@cache
def _nvml() -> ModuleType | None:
    """NVIDIA's library, by the bindings that Ray brings; None on a machine without."""
    from ray._private.thirdparty import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    found: ModuleType = pynvml
    return found


class MachineReader:
    """An actor on another node."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # from which the first reading counts

    def read(self) -> dict[str, float]:
        """See `machine_readings`."""
        return machine_readings()


@dataclass
class _Node:
    """Another node: its name among the metrics, its reader, and the reading that was asked for."""

    name: str
    reader: Any
    asked: Any = None


@dataclass
class SystemMetrics:
    """Call it for the readings of all machines that the run is on, as MLflow's metrics: `system/cpu_percent`
    is the driver's, `system/<host>/gpu_0_percent` another's.

    What can't be read is left out. Where no Ray is connected, there is this machine alone.
    """

    resolved: ResolvedRun
    _nodes: dict[str, _Node] = field(default_factory=dict, init=False)
    _hosts: dict[str, str] = field(default_factory=dict, init=False)  # by ids of the run's nodes

    def __post_init__(self) -> None:
        psutil.cpu_percent()
        self._follower = Follower.at_end(self.resolved.event_log)
        self._actors = _hosts_of(self.resolved.places)
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
        """Readings by host."""
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
                # Several nodes have one host where a cluster is simulated.
                taken = any(node.name == host for node in self._nodes.values())
                self._nodes[node_id] = _Node(
                    f"{host}-{node_id[:6]}" if taken else host,
                    actor.options(scheduling_strategy=there).remote(),
                )

    def _read(self) -> dict[str, dict[str, float]]:
        import ray
        from ray.exceptions import RayError

        for node in self._nodes.values():
            if node.asked is None:  # or else it is still at the one before
                node.asked = node.reader.read.remote()
        waited = [node.asked for node in self._nodes.values()]
        ready, _ = ray.wait(waited, num_returns=len(waited), timeout=READ_S) if waited else ([], [])
        found: dict[str, dict[str, float]] = {}
        for node_id, node in list(self._nodes.items()):
            if node.asked not in ready:
                continue
            try:
                found[node.name] = ray.get(node.asked)
                node.asked = None
            except RayError:  # lost; the next attempt says where the run is then
                del self._nodes[node_id]
                self._hosts.pop(node_id)
        return found


def summary(readings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The least, the mean and the most of each figure over several machines, and over all their GPUs."""
    values: dict[str, list[float]] = {}
    for one in readings:
        for name, value in one.items():
            values.setdefault(_GPU_NUMBER.sub("gpu_", name), []).append(value)
    kinds: dict[str, Callable[[list[float]], float]] = {
        "least": min,
        "mean": statistics.fmean,
        "most": max,
    }
    return {
        f"{name}/{kind}": float(of(found))
        for name, found in values.items()
        for kind, of in kinds.items()
    }


def _hosts_of(places: Sequence[Any]) -> dict[str, str]:
    """Hosts by ids of the nodes where actors have their places."""
    if not places:
        return {}
    import ray
    from ray.util import placement_group_table

    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    found = {}
    for place in places:
        nodes = placement_group_table(place.placement_group)["bundles_to_node_id"]
        node_id = nodes[place.placement_group_bundle_index]
        found[node_id] = hosts.get(node_id, "?")
    return found
