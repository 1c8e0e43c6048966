"""A little work on a certain node of the cluster, as on the processes that are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def on_node(node: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Begin `work(*arguments)` on the node of this id; returns what `answer` waits for."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=there, max_retries=0)(work).remote(*arguments)


def answer(asked: Any, timeout_s: float) -> Any:
    """Return what the work gave or, where it failed or the node is lost or doesn't answer, Ray's error."""
    import ray

    try:
        return ray.get(asked, timeout=timeout_s)
    except ray.exceptions.RayError as error:
        return error
