"""Start the workers under Ray Train, in a thread, so that Ctrl-C still reaches the driver."""

from __future__ import annotations

import math
import os
import shutil
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from raymill.engine.heartbeat import COLLECTIVE_TIMEOUT_S
from raymill.engine.resolved_run import ResolvedRun
from raymill.parent_death import die_with, show_stack_to
from raymill.timeline import mark


class WorkerConfig(TypedDict):
    """Argument of Ray Train's entry point in each worker."""

    resolved: ResolvedRun


class WorkerRun:
    """A worker group under way. It runs in a thread, since signals arrive in the main thread."""

    def __init__(self, resolved: ResolvedRun, workers: int) -> None:
        self.error: BaseException | None = None
        self._resolved = resolved
        self._workers = workers
        # Ray would continue a run of the same name from its own records, but checkpoints are ours to
        # resume from. So each start gets a new name and folder.
        self._scratch = resolved.run_dir / "ray" / uuid.uuid4().hex[:8]
        self._thread = threading.Thread(target=self._fit, name="raymill-workers", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait so long at most; return True when the workers have ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _fit(self) -> None:
        try:
            _fit(self._resolved, self._workers, self._scratch)
        except BaseException as error:
            # The main thread, which waits for this one, reports it.
            self.error = error
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
            # It isn't empty while another start's folder is in it.
            with suppress(OSError):
                self._scratch.parent.rmdir()


def collective_timeout_s(resolved: ResolvedRun) -> int:
    """Return the limit within which ranks wait for each other in a collective.

    Rank 0 samples and rewards a step's answers while the others wait. The limit is long enough that a slow
    sampler or reward meets its own timeout before the collective does.
    """
    return COLLECTIVE_TIMEOUT_S + (
        0 if resolved.rl is None else math.ceil(resolved.rl.step_timeout_s)
    )


def _work(config: WorkerConfig) -> None:
    """Set up a worker's process, and train."""
    import ray

    from raymill.driver.worker import train_worker
    from raymill.engine.heartbeat import NODE

    # The parent is Ray's node, or the fork server, which ends with the node. A worker that is stopped
    # can't notice their end itself.
    parent = os.getppid()
    die_with(parent)
    # The watchdog dumps this process's stack from a task on the same node, which has the same parent.
    show_stack_to(parent)
    mark("worker")
    os.environ[NODE] = ray.get_runtime_context().get_node_id()
    train_worker(config["resolved"])


def _fit(resolved: ResolvedRun, workers: int, scratch: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from raymill.cluster.lean_trainer import AttemptTrainer, LeanTrainer, fit_limits
    from raymill.cluster.process_group import GroupConfig

    mark("trainer")
    fit_limits(workers)
    job = resolved.job
    resources = {"CPU": job.cluster.cpus_per_worker}
    if job.cluster.gpu:
        resources["GPU"] = 1.0
    trainer = LeanTrainer if job.cluster.address == "local" else AttemptTrainer
    trainer(
        _work,
        train_loop_config=WorkerConfig(resolved=resolved),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=job.cluster.gpu,
            resources_per_worker=resources,
        ),
        torch_config=GroupConfig(
            backend="nccl" if job.cluster.gpu else "gloo", timeout_s=collective_timeout_s(resolved)
        ),
        run_config=RunConfig(
            name=scratch.name,
            storage_path=str(scratch.parent),
            # Ray never retries: driver/failure.py decides what follows a failure.
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
        ),
    ).fit()
