"""Capacity of the cluster: the number of workers that fit, and the number that a run takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from raymill.cluster.session import DATA_READING_CPUS, NO_ACTORS, ActorResources
from raymill.schema.sections import ClusterConfig


def largest_fit(allowed: Sequence[int], capacity: int) -> int | None:
    """Return the largest allowed number of workers that fits; None if none does."""
    return max((size for size in allowed if size <= capacity), default=None)


def worker_capacity(
    cluster: ClusterConfig,
    actor_resources: ActorResources = NO_ACTORS,
    worker_bytes: float = 0.0,
) -> int:
    """Return the number of workers that fit on the living nodes, next to a job's actors.

    Nodes that are about to leave don't count. `worker_bytes` are the host memory that a worker needs.
    """
    import ray

    leaving = draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    # The memory of this machine was checked before Ray was started on it.
    needed = 0.0 if cluster.address == "local" else worker_bytes
    return workers_that_fit([node["Resources"] for node in nodes], cluster, actor_resources, needed)


def workers_that_fit(
    nodes: Sequence[Mapping[str, float]],
    cluster: ClusterConfig,
    actor_resources: ActorResources,
    worker_bytes: float = 0.0,
) -> int:
    """Return the number of workers that fit on nodes of these resources.

    Workers are placed node by node, after the actors; a rest must stay free for reading data.
    """
    worker = _worker_resources(cluster)
    # Ray's own count of a node's bytes; workers don't reserve them, since the plan is an estimate.
    if worker_bytes:
        worker["memory"] = worker_bytes
    actor = {"CPU": actor_resources.cpus_each, "GPU": actor_resources.gpus_each}
    free = [dict(node) for node in nodes]
    # Actors come first, because a job can't run without all of them.
    for _ in range(actor_resources.actors):
        if not _take_from_node(free, actor):
            return 0
    count = 0
    while worker and _take_from_node(free, worker):
        count += 1
    # Without cores for reading data, one worker less leaves its own.
    if sum(node.get("CPU", 0.0) for node in free) < DATA_READING_CPUS:
        count -= 1
    return max(0, count)


@contextmanager
def requesting_capacity(workers: int, cluster: ClusterConfig) -> Iterator[None]:
    """Let an autoscaler know the missing capacity for the length of the block.

    An autoscaler adds nodes for a placement group that doesn't fit.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([*[_worker_resources(cluster)] * workers, {"CPU": DATA_READING_CPUS}])
    try:
        yield
    finally:
        remove_placement_group(group)


def _worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """Return the resources of one worker."""
    worker = {"CPU": cluster.cpus_per_worker, "GPU": 1.0 if cluster.gpu else 0.0}
    return {name: amount for name, amount in worker.items() if amount}


def _take_from_node(free: list[dict[str, float]], amounts: dict[str, float]) -> bool:
    """Take resources from the first node that has them; return whether there is one."""
    for node in free:
        if all(node.get(name, 0.0) >= amount for name, amount in amounts.items()):
            node.update({name: node.get(name, 0.0) - amount for name, amount in amounts.items()})
            return True
    return False


def draining_nodes() -> set[str]:
    """Return the nodes that Ray knows will leave, for example before a preemption."""
    import ray

    # There is no public call for it; Ray Train reads it in this way too.
    draining: dict[str, int] = ray._private.state.state.get_draining_nodes() or {}
    return set(draining)


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or of this container if it is limited to less."""
    import psutil

    total = int(psutil.virtual_memory().total)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
