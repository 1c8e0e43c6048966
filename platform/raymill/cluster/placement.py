"""Room for a job's actors, reserved before its workers start: all of it or none, and nobody else's until the
job ends, so that an actor which takes a dead one's place finds its resources free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from raymill.cluster.session import ActorResources
from raymill.errors import ClusterError

PATIENCE_S = 5.0  # before the user is told what is waited for
RESERVE_S = 600.0  # a cluster that grows on demand takes minutes


@dataclass(frozen=True)
class ActorPlacement:
    """Ray's scheduling strategy and the host for each actor; none where they need nothing."""

    places: tuple[Any, ...] = ()
    hosts: tuple[str, ...] = ()

    def spelled(self, first: int, count: int) -> str:
        """Where these actors sit, as in `a (2), b`."""
        hosts = Counter(self.hosts[first : first + count])
        return ", ".join(f"{host} ({n})" if n > 1 else host for host, n in hosts.items())


@contextmanager
def reserved(beside: ActorResources) -> Iterator[ActorPlacement]:
    """A placement group for the actors, near each other where that is possible; call it with Ray connected.

    Raises:
        ClusterError: the cluster finds no room in time.
    """
    each = {"CPU": beside.cpus_each, "GPU": beside.gpus_each}
    bundle = {name: amount for name, amount in each.items() if amount}
    if not beside.actors or not bundle:
        yield ActorPlacement()
        return
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([bundle] * beside.actors, strategy="PACK")
    try:
        _wait(group, beside)
        places = range(beside.actors)
        strategies = tuple(PlacementGroupSchedulingStrategy(group, place) for place in places)
        yield ActorPlacement(strategies, _hosts(group, places))
    finally:
        if ray.is_initialized():
            remove_placement_group(group)


def _wait(group: Any, beside: ActorResources) -> None:
    if group.wait(PATIENCE_S):
        return
    what = f"{beside.actors} actors of {beside.cpus_each:g} CPUs and {beside.gpus_each:g} GPUs"
    print(f"waiting for room for {what} …", flush=True)
    if not group.wait(RESERVE_S):
        raise ClusterError(
            f"the cluster found no room for {what} within {RESERVE_S:g} s; end what else runs there, "
            "or ask for fewer actors (rollout.actors, reward.model_actors)"
        )


def _hosts(group: Any, places: Sequence[int]) -> tuple[str, ...]:
    import ray
    from ray.util import placement_group_table

    names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    nodes = placement_group_table(group)["bundles_to_node_id"]
    return tuple(names.get(nodes[place], "?") for place in places)
