"""Ray Train's trainer for one attempt: it leaves no process behind, and starts no needless ones."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    DEFAULT_HEALTH_CHECK_INTERVAL_S,
    DEFAULT_WORKER_GROUP_START_TIMEOUT_S,
    HEALTH_CHECK_INTERVAL_S_ENV_VAR,
    WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
)
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from raymill.cluster.placement import results_or_errors, start_on_node

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

# The first splits a trainer's datasets, but ours are opened by the first worker. The second removes
# the placement group of a killed controller: it polls the dashboard, which a local Ray lacks, and the
# end of a run waits for it.
_OMITTED = (DatasetsCallback, PlacementGroupCleanerCallback)
# Ray's limit for the start of a group, 60 s, and what is added for each worker: Ray starts some tens per
# second.
START_S = 60.0
START_S_PER_WORKER = 0.1
# Workers that the controller asks per second for their state; each takes it about 0.4 ms.
CHECKS_PER_S = 500
# Within this time the system ends a killed process, however much memory it must reclaim.
GONE_S = 30.0


def fit_limits(workers: int) -> None:
    """Set Ray Train's limits for a group of so many workers; higher ones in the environment stay.

    Ray reads them when a trainer starts, and passes them on to its controller.
    """
    start_s = START_S + START_S_PER_WORKER * workers
    for name, default, least in (
        (WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, DEFAULT_WORKER_GROUP_START_TIMEOUT_S, start_s),
        (HEALTH_CHECK_INTERVAL_S_ENV_VAR, DEFAULT_HEALTH_CHECK_INTERVAL_S, workers / CHECKS_PER_S),
    ):
        os.environ[name] = str(max(least, float(os.environ.get(name, default))))


class FailedWorkers(WorkerGroupCallback, ControllerCallback):  # type: ignore[misc]
    """Callback in Ray Train's controller that ends a failed attempt's processes.

    They are gone before the driver learns of the failure. Ray itself would first ask the workers to
    leave their process group, in which they may be waiting for each other. And it doesn't end
    workers whose process group couldn't form (`WorkerGroup._start`): they and the controller then
    refer to each other, and keep their resources from the next attempt.
    """

    def __init__(self) -> None:
        self._group: WorkerGroup | None = None

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Store the worker group; must be the first callback, because the next forms the process
        group."""
        self._group = worker_group

    def before_controller_execute_failure_decision(self, failure_decision: FailureDecision) -> None:
        """Kill the workers, and wait until they have gone."""
        import ray

        # The start of the workers may have failed.
        if self._group is None or not self._group.has_started():
            return
        pids_by_node = defaultdict(list)
        for worker in self._group.get_workers():
            ray.kill(worker.actor)
            pids_by_node[worker.metadata.node_id].append(worker.metadata.pid)
        waits = [start_on_node(node, wait_until_gone, pids) for node, pids in pids_by_node.items()]
        # An error is ignored, because the processes of a lost node are as good as gone.
        results_or_errors(waits, 2 * GONE_S)

    async def before_controller_shutdown(self) -> None:
        """Release workers that the controller doesn't know, because their start failed."""
        if self._group is not None and self._group.has_started():
            self._group.abort()


def wait_until_gone(pids: Sequence[int]) -> None:
    """Wait until processes of this machine have ended, up to GONE_S."""
    import psutil

    processes = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    psutil.wait_procs(processes, timeout=GONE_S)


class AttemptTrainer(TorchTrainer):  # type: ignore[misc]
    """Trainer of one attempt, which ends failed workers."""

    def _create_default_callbacks(self) -> list[UserCallback]:
        return [FailedWorkers(), *super()._create_default_callbacks()]


class LeanTrainer(AttemptTrainer):
    """Trainer for a local Ray, whose actors all end with the driver.

    It omits two of Ray's own actors that every start would wait for.
    """

    def _create_default_callbacks(self) -> list[UserCallback]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback) not in _OMITTED]
