"""Ray Data executions that ask nothing of the cluster but the tasks they run.

Ray Data has two actors per cluster: one shares the cluster's resources out among all executions, and
does so anew for every one that begins; the other collects everybody's metrics every five seconds. A
training run has an execution on each rank. With a thousand nodes, the first actor would work for an
hour at a start, and its answer would be the same as the one given here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

from ray.data import DataContext, ExecutionResources
from ray.data._internal import stats
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import streaming_executor

# Ray Data names every execution after its data set, and passes the name to whatever it calls.
PREFIX = "lean-"
_KEY = "raymill.lean"


@contextmanager
def lean_execution(context: DataContext) -> Iterator[None]:
    """Make the data sets that are built in this block lean; they use `context`."""
    _patch()
    context.set_config(_KEY, True)
    with DataContext.current(context):
        yield


class _NoAutoscaler(ClusterAutoscaler):  # type: ignore[misc]
    """Autoscaler that never asks for nodes; an execution's own limits are far below its total."""

    def try_trigger_scaling(self) -> None:
        pass

    def on_executor_shutdown(self) -> None:
        pass

    def get_total_resources(self) -> ExecutionResources:
        return ExecutionResources(cpu=2**10, gpu=0, memory=2**50, object_store_memory=2**50)


@cache
def _patch() -> None:
    """Replace the functions that call the two actors; other executions still reach them."""
    manager = stats._StatsManager
    for name, position in (
        ("register_dataset_to_stats_actor", 0),
        ("update_execution_metrics", 0),
        ("update_iteration_metrics", 1),
    ):
        setattr(manager, name, staticmethod(_unless_lean(getattr(manager, name), position)))
    named = manager.gen_dataset_id_from_stats_actor

    def new_name() -> str:
        lean = DataContext.get_current().get_config(_KEY, False)
        return f"{PREFIX}{uuid.uuid4().hex}" if lean else str(named())

    manager.gen_dataset_id_from_stats_actor = staticmethod(new_name)
    created = streaming_executor.create_cluster_autoscaler

    def create(*arguments: Any, execution_id: str, **more: Any) -> ClusterAutoscaler:
        if PREFIX in execution_id:
            return _NoAutoscaler()
        return created(*arguments, execution_id=execution_id, **more)

    streaming_executor.create_cluster_autoscaler = create


def _unless_lean(original: Callable[..., None], position: int) -> Callable[..., None]:
    """Wrap a function that takes an execution's name at a position."""

    @wraps(original)
    def wrapped(*arguments: Any, **more: Any) -> None:
        if PREFIX not in str(more.get("dataset_tag", arguments[position:][:1])):
            original(*arguments, **more)

    return wrapped
