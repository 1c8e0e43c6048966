"""Tasks on the cluster: one small item in, one small result out, in any order.

Preparations of every kind run their units through these two. An error meant for the user is returned as a
result, so that it arrives without Ray's trace.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from raymill.errors import ClusterError, RaymillError

if TYPE_CHECKING:
    import ray

Item = TypeVar("Item")
Shared = TypeVar("Shared")
Result = TypeVar("Result")

# Results that one task of `reduced` combines.
FAN_IN = 16
# Shares of the items that `reduced` makes for each core, so that slow ones even out.
SHARES_PER_CORE = 4
# Characters by which an item is named in an error.
NAMED = 200


def is_connected() -> bool:
    """Return whether this process has joined a cluster, so that tasks can run."""
    # A process that hasn't imported Ray has joined none, and does not have to wait for the import.
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def parallel(
    function: Callable[[Item, Shared], Result],
    items: Iterable[Item],
    *,
    shared: Shared,
    tasks: int | None = None,
) -> Iterator[Result]:
    """Yield function(item, shared) for every item, computed on the cluster, in no fixed order.

    `tasks` limits the number that run at once (None: one per free core). Items are taken as tasks end, so
    that however many there are, few are in the memory of this process. Ray repeats the tasks of a machine
    or process that was lost.

    Raises:
        RaymillError: the first one that a task raised.
        ClusterError: an item was tried several times, and its process ended each time.
    """
    import ray

    put, remote = ray.put(shared), ray.remote(_call)
    remaining, running = iter(items), dict[ray.ObjectRef, Item]()
    try:
        while True:
            # Machines may come and go.
            cores = float(ray.cluster_resources().get("CPU", 1.0))
            # A task waits for each that runs, so that no core waits for this process.
            window = tasks or max(2, 2 * int(cores))
            # More tasks than cores can only run at once if each claims less than a core.
            share = 1.0 if tasks is None else min(1.0, cores / tasks)
            for item in islice(remaining, max(0, window - len(running))):
                running[remote.options(num_cpus=share).remote(function, item, put)] = item
            if not running:
                return
            for done in ray.wait([*running])[0]:
                outcome = _outcome(done, running.pop(done))
                if isinstance(outcome, RaymillError):
                    raise outcome
                yield outcome
    finally:
        # After an error or an interrupt, nobody waits for the others.
        for unfinished in running:
            ray.cancel(unfinished)


def _call(
    function: Callable[[Item, Shared], Result], item: Item, shared: Shared
) -> Result | RaymillError:
    try:
        return function(item, shared)
    except RaymillError as error:
        return error


def _outcome(done: ray.ObjectRef, item: object) -> Any:
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    try:
        return ray.get(done)
    except (NodeDiedError, OutOfMemoryError, WorkerCrashedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ClusterError(
            f"A process ended each time it worked on {str(item)[:NAMED]} ({reason}). What was finished "
            "before is kept; free memory, or give less work at once, and run the same command again."
        ) from error


def reduced(
    function: Callable[[Item, Shared], Result],
    combine: Callable[[Sequence[Result]], Result],
    items: Sequence[Item],
    *,
    shared: Shared,
    tasks: int | None = None,
) -> Result:
    """Return `combine` of function(item, shared) for all items, computed on the cluster in a tree.

    No process receives more than `FAN_IN` results at once, however many items there are. `tasks`: see
    `parallel`; `combine` must not depend on the order and grouping of results.

    Raises:
        RaymillError: the first one that a task raised.
    """
    import ray

    put = ray.put(shared)
    cores = int(ray.cluster_resources().get("CPU", 1.0))
    count = min(len(items), tasks or SHARES_PER_CORE * max(1, cores))
    # Every task takes a share of the items, one after the other.
    listed = list(items)
    shares = [listed[number::count] for number in range(count)]
    start = ray.remote(num_cpus=1)(_reduced_share)
    level = [start.remote(function, combine, share, put) for share in shares]
    join = ray.remote(num_cpus=1)(_reduced_results)
    while len(level) > 1:
        level = [
            join.remote(combine, *level[first : first + FAN_IN])
            for first in range(0, len(level), FAN_IN)
        ]
    outcome: Result | RaymillError = ray.get(level[0])
    if isinstance(outcome, RaymillError):
        raise outcome
    return outcome


def _reduced_share(
    function: Callable[[Item, Shared], Result],
    combine: Callable[[Sequence[Result]], Result],
    share: Sequence[Item],
    shared: Shared,
) -> Result | RaymillError:
    outcome = None
    try:
        for item in share:
            result = function(item, shared)
            outcome = result if outcome is None else combine([outcome, result])
    except RaymillError as error:
        return error
    assert outcome is not None, "a share has items"
    return outcome


def _reduced_results(
    combine: Callable[[Sequence[Result]], Result], *results: Result | RaymillError
) -> Result | RaymillError:
    good: list[Result] = []
    for result in results:
        if isinstance(result, RaymillError):
            return result
        good.append(result)
    return combine(good)
