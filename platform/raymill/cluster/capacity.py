"""How many workers the cluster has room for, and how many a run takes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raymill.cluster.session import NO_ACTORS, READING, ActorResources
from raymill.schema.sections import ClusterConfig


def largest_fit(allowed: Sequence[int], room: int) -> int | None:
    """The most workers of those that the batch can be divided among; None: there is room for none of them."""
    return max((size for size in allowed if size <= room), default=None)


def room_for_workers(cluster: ClusterConfig, beside: ActorResources = NO_ACTORS) -> int:
    """Workers that the living nodes hold besides a job's actors; nodes about to go don't count."""
    import ray

    leaving = draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    return fitting([node["Resources"] for node in nodes], cluster, beside)


def fitting(nodes: Sequence[dict[str, Any]], cluster: ClusterConfig, beside: ActorResources) -> int:
    """Workers that fit on nodes of these resources, node by node, once the actors have theirs, with what
    reading the data takes left over."""
    each = _each(cluster)
    actor = {"CPU": beside.cpus_each, "GPU": beside.gpus_each}
    free = [dict(node) for node in nodes]
    for _ in range(beside.actors):
        if not _take(free, actor):
            return 0
    count = 0
    while each and _take(free, each):
        count += 1
    if sum(node.get("CPU", 0.0) for node in free) < READING:
        count -= 1
    return max(0, count)


@contextmanager
def requesting_capacity(workers: int, cluster: ClusterConfig) -> Iterator[None]:
    """Within the block, an autoscaler knows what is waited for: a placement group that finds no room is what it
    makes room for."""
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([*[_each(cluster)] * workers, {"CPU": READING}])
    try:
        yield
    finally:
        remove_placement_group(group)


def _each(cluster: ClusterConfig) -> dict[str, float]:
    """What a worker takes."""
    each = {"CPU": cluster.cpus_per_worker, "GPU": 1.0 if cluster.gpu else 0.0}
    return {name: amount for name, amount in each.items() if amount}


def _take(free: list[dict[str, float]], amounts: dict[str, float]) -> bool:
    """Whether some node had that much, which it has no more."""
    for node in free:
        if all(node.get(name, 0.0) >= amount for name, amount in amounts.items()):
            node.update({name: node.get(name, 0.0) - amount for name, amount in amounts.items()})
            return True
    return False


def draining_nodes() -> set[str]:
    """Nodes that Ray was told will go, as before a pre-emption."""
    import ray

    # No public call tells the driver; Ray Train asks in this way too.
    found: dict[str, int] = ray._private.state.state.get_draining_nodes() or {}
    return set(found)
