"""Ray Data executions that ask nothing of the cluster but the tasks they run.

A training run has one on each rank, for as long as it lasts, so three things count that don't in a
short execution:

- One actor of a cluster shares its resources out among all executions, and does so again for every
  one that begins: with a thousand nodes it would work for an hour at a start. Another one collects
  every execution's metrics each five seconds. Lean executions call neither.
- While a consumer is slower than its tasks, an execution's thread looks for work without a pause. In
  a process that trains, it would take a core from it. A lean one waits until its output is taken;
  that bounds its memory, too, so it needs no limit of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

from ray.data import DataContext, Dataset, ExecutionResources
from ray.data._internal import stats
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.execution_callback import ExecutionCallback

# Name of lean data sets. Ray Data puts it into the name of the execution, which it passes on to
# whatever it calls.
NAME = "raymill-lean"
_PAUSE_S = 0.02


@contextmanager
def lean_context() -> Iterator[DataContext]:
    """Yield the context of the data sets that are built in this block, to be set up further."""
    _patch()
    # It would report on every execution in the log of a rank.
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    context.custom_execution_callback_classes = [_WaitForConsumer]
    with DataContext.current(context):
        yield context


def lean(dataset: Dataset) -> Dataset:
    """Mark a data set, built in `lean_context`, as lean."""
    dataset.set_name(NAME)
    return dataset


class _WaitForConsumer(ExecutionCallback):  # type: ignore[misc]
    """Pause of an execution whose output waits for its consumer: then it takes no more from its
    tasks, which keep two blocks each and pause in turn."""

    def on_execution_step(self, executor: streaming_executor.StreamingExecutor) -> None:
        _, state = executor._output_node
        while state.output_queue.has_next() and not executor._shutdown:
            time.sleep(_PAUSE_S)


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
    created = streaming_executor.create_cluster_autoscaler

    def create(*arguments: Any, execution_id: str, **more: Any) -> ClusterAutoscaler:
        if NAME in execution_id:
            return _NoAutoscaler()
        return created(*arguments, execution_id=execution_id, **more)

    streaming_executor.create_cluster_autoscaler = create


def _unless_lean(original: Callable[..., None], position: int) -> Callable[..., None]:
    """Wrap a function that takes an execution's name at a position."""

    @wraps(original)
    def wrapped(*arguments: Any, **more: Any) -> None:
        if NAME not in str(more.get("dataset_tag", arguments[position : position + 1])):
            original(*arguments, **more)

    return wrapped
