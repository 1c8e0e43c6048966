"""Placement of work in the cluster: a job's actors, and tasks that run on one particular node.

Resources for the actors are reserved before the workers start: all of them or none, and until the
job ends, so that an actor that replaces a dead one finds its resources free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymill.cluster.session import ActorResources
from raymill.errors import ClusterError

if TYPE_CHECKING:
    import ray
    from ray.util.placement_group import PlacementGroup
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

# After this time the wait is reported to the user.
NOTICE_AFTER_S = 5.0
# A cluster that grows on demand takes minutes.
TIMEOUT_S = 600.0
# Time to fetch the result of a task that has ended.
FETCH_S = 10.0


@dataclass(frozen=True)
class ActorPlacement:
    """Ray's scheduling strategy and the host for each actor; empty where actors need no
    resources."""

    scheduling_strategies: tuple[PlacementGroupSchedulingStrategy, ...] = ()
    hosts: tuple[str, ...] = ()

    def describe_hosts(self, first: int, count: int) -> str:
        """Describe the hosts of `count` actors from number `first` on, as in `a (2), b`."""
        hosts = Counter(self.hosts[first : first + count])
        return ", ".join(f"{host} ({n})" if n > 1 else host for host, n in hosts.items())


@contextmanager
def reserve_actors(actor_resources: ActorResources) -> Iterator[ActorPlacement]:
    """Reserve a placement group for the actors, close together where possible; Ray must be
    connected.

    Raises:
        ClusterError: the cluster doesn't have the resources in time.
    """
    each = {"CPU": actor_resources.cpus_each, "GPU": actor_resources.gpus_each}
    bundle = {name: amount for name, amount in each.items() if amount}
    if not actor_resources.actors or not bundle:
        yield ActorPlacement()
        return
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    # One bundle per actor, so that each actor can be placed and replaced by itself.
    group = placement_group([bundle] * actor_resources.actors, strategy="PACK")
    try:
        _wait(group, actor_resources)
        indices = range(actor_resources.actors)
        strategies = tuple(PlacementGroupSchedulingStrategy(group, index) for index in indices)
        yield ActorPlacement(strategies, _hosts(group, indices))
    finally:
        # The connection may have ended with the job.
        if ray.is_initialized():
            remove_placement_group(group)


def _wait(group: PlacementGroup, actor_resources: ActorResources) -> None:
    if group.wait(NOTICE_AFTER_S):
        return
    what = (
        f"{actor_resources.actors} actors of {actor_resources.cpus_each:g} CPUs "
        f"and {actor_resources.gpus_each:g} GPUs"
    )
    print(f"waiting for resources for {what} …", flush=True)
    if not group.wait(TIMEOUT_S):
        raise ClusterError(
            f"the cluster had no resources for {what} within {TIMEOUT_S:g} s; end other jobs there, "
            "or ask for fewer actors (rollout.actors, reward.model_actors)"
        )


def _hosts(group: PlacementGroup, indices: Sequence[int]) -> tuple[str, ...]:
    import ray
    from ray.util import placement_group_table

    names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    nodes = placement_group_table(group)["bundles_to_node_id"]
    return tuple(names.get(nodes[index], "?") for index in indices)


def start_on_node(node: str, work: Callable[..., object], *arguments: object) -> ray.ObjectRef:
    """Start `work(*arguments)` on the node of this id; return the reference to its result."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # The task is for the processes of this node, so another node is of no use.
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, scheduling_strategy=strategy, max_retries=0)(work)
    return task.remote(*arguments)


def results_or_errors(references: Sequence[ray.ObjectRef], timeout_s: float) -> list[Any]:
    """Return each task's result, or Ray's error if it failed, or its node is lost or doesn't answer.

    All tasks together are waited for no longer than `timeout_s`.
    """
    import ray

    if not references:
        return []
    ready = set(ray.wait(list(references), num_returns=len(references), timeout=timeout_s)[0])
    results: list[Any] = []
    for reference in references:
        try:
            results.append(ray.get(reference, timeout=FETCH_S if reference in ready else 0))
        except ray.exceptions.RayError as error:
            results.append(error)
    return results
