"""How many workers the cluster has room for, and how many a run takes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raymill.cluster.session import NOTHING, Beside
from raymill.config.schema import ClusterConfig


def choose(allowed: Sequence[int], room: int) -> int | None:
    """The most workers of those that the batch can be divided among; None: there is room for none of them."""
    return max((size for size in allowed if size <= room), default=None)


def room_for_workers(cluster: ClusterConfig, beside: Beside = NOTHING) -> int:
    """Workers that the living nodes hold besides a job's actors; nodes about to go don't count."""
    import ray

    leaving = draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    return fitting([node["Resources"] for node in nodes], cluster, beside)


def fitting(nodes: Sequence[dict[str, Any]], cluster: ClusterConfig, beside: Beside) -> int:
    """Workers that fit on nodes of these resources, node by node, once the actors have theirs."""
    each = {"CPU": cluster.cpus_per_worker, "GPU": 1.0 if cluster.gpu else 0.0}
    taken = {"CPU": beside.cpus, "GPU": beside.gpus}
    count = sum(
        min(
            (int(node.get(name, 0.0) / amount) for name, amount in each.items() if amount),
            default=0,
        )
        for node in nodes
    )
    for name, amount in each.items():
        if amount:
            left = sum(node.get(name, 0.0) for node in nodes) - taken[name]
            count = min(count, int(left / amount))
    return max(0, count)


def draining_nodes() -> set[str]:
    """Nodes that Ray was told will go, as before a pre-emption."""
    import ray

    # No public call tells the driver; Ray Train asks in this way too.
    found: dict[str, int] = ray._private.state.state.get_draining_nodes() or {}
    return set(found)
