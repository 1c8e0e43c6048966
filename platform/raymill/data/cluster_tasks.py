"""Tasks on the cluster: one small item in, one small result out, in any order.

Preparations of every kind run their units through these two. An error meant for the user is returned as a
result, so that it arrives without Ray's trace.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from raymill.errors import RaymillError

if TYPE_CHECKING:
    import ray

Item = TypeVar("Item")
Shared = TypeVar("Shared")
Result = TypeVar("Result")

# Results that one task of `reduced` combines.
FAN_IN = 16


def parallel(
    function: Callable[[Item, Shared], Result],
    items: Sequence[Item],
    *,
    shared: Shared,
    tasks: int | None = None,
) -> Iterator[Result]:
    """Yield function(item, shared) for every item, computed on the cluster, in no fixed order.

    `tasks` limits the number that run at once (None: one per free core).

    Raises:
        RaymillError: the first one that a task raised.
    """
    import ray
    import ray.data

    # Ray Data sets up its loggers when it is imported; its log of a run isn't meant for the user.
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # One large compressed file may take an hour.
    context.execution_no_progress_timeout_s = -1
    cores = float(ray.cluster_resources().get("CPU", 1.0))
    # More tasks than cores can only run at once if each claims less than a core.
    share = 1.0 if tasks is None else min(1.0, cores / tasks)
    rows = [{"item": pickle.dumps(item)} for item in items]
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            partial(_call, function, ray.put(shared)),
            num_cpus=share,
            compute=ray.data.TaskPoolStrategy(size=tasks and min(tasks, len(rows))),
        )
    for row in dataset.iter_rows():
        outcome = pickle.loads(row["outcome"])
        if isinstance(outcome, RaymillError):
            raise outcome
        yield outcome


def _call(
    function: Callable[[Item, Shared], Result], shared: ray.ObjectRef, row: dict[str, bytes]
) -> dict[str, bytes]:
    import ray

    outcome: Result | RaymillError
    try:
        outcome = function(pickle.loads(row["item"]), ray.get(shared))
    except RaymillError as error:
        outcome = error
    return {"outcome": pickle.dumps(outcome)}


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
    count = len(items) if tasks is None else min(tasks, len(items))
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
