"""Ray Train's trainer as an attempt takes it: it leaves no process, and on one machine starts none in vain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from raymill.cluster.nodes import answer, on_node

# One deals out the datasets that a trainer is given: ours are opened by the first worker. The other removes the
# placement group of a controller that was killed: it asks the dashboard, which a local Ray lacks, once a second
# whether the controller lives, and is waited for at the end.
_LEFT_OUT = (DatasetsCallback, PlacementGroupCleanerCallback)
GONE_S = 30.0  # in which the system ends a killed process, however much memory it has to take back


class FailedWorkers(WorkerGroupCallback, ControllerCallback):  # type: ignore[misc]
    """In Ray Train's controller: a failed attempt's processes are gone before the driver hears of the failure.

    Ray itself would first ask the workers to leave their process group, in which they may be waiting for each
    other, and doesn't end those at all whose process group couldn't form (`WorkerGroup._start`): they and the
    controller then refer to each other, and keep their room from the next attempt's.
    """

    def __init__(self) -> None:
        self._group: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Remember the workers; the first of the callbacks, since the next one forms the process group."""
        self._group = worker_group

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        """Kill them, and wait until they have gone."""
        import ray

        if self._group is None or not self._group.has_started():
            return
        places = defaultdict(list)
        for worker in self._group.get_workers():
            ray.kill(worker.actor)
            places[worker.metadata.node_id].append(worker.metadata.pid)
        asked = [on_node(node, wait_until_gone, pids) for node, pids in places.items()]
        for one in asked:  # a lost node's processes are as good as gone
            answer(one, 2 * GONE_S)

    async def before_controller_shutdown(self) -> None:
        """Give back the room of workers of which the controller doesn't know: their start failed."""
        if self._group is not None and self._group.has_started():
            self._group.abort()


def wait_until_gone(pids: Sequence[int]) -> None:
    """Wait for the end of processes of this machine, as long as that may take."""
    import psutil

    processes = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    psutil.wait_procs(processes, timeout=GONE_S)


class AttemptTrainer(TorchTrainer):  # type: ignore[misc]
    """For one attempt."""

    def _create_default_callbacks(self) -> list[Any]:
        return [FailedWorkers(), *super()._create_default_callbacks()]


class LeanTrainer(AttemptTrainer):
    """For a local Ray, whose actors all end with the driver: without two actors of Ray's own that every start
    would wait for."""

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one) not in _LEFT_OUT]
