"""Starting the workers under Ray Train, and waiting for them without losing Ctrl-C."""

from __future__ import annotations

import math
import os
import shutil
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from raymill.engine.heartbeat import WAIT_S
from raymill.engine.resolved_run import ResolvedRun
from raymill.parent_death import die_with, show_stack_to
from raymill.schema.jobs import RlhfJob, TrainJob
from raymill.timeline import mark


class WorkerRun:
    """A worker group under way. It runs in a thread, so that the main thread keeps the signals."""

    def __init__(self, resolved: ResolvedRun, workers: int) -> None:
        self.error: BaseException | None = None
        self._resolved = resolved
        self._workers = workers
        # Ray's own bookkeeping is never consulted: each start gets a name and folder of its own.
        self._scratch = resolved.run_dir / "ray" / uuid.uuid4().hex[:8]
        self._thread = threading.Thread(target=self._fit, name="raymill-workers", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait a little; True when the workers have ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _fit(self) -> None:
        try:
            _fit(self._resolved, self._workers, self._scratch)
        except BaseException as error:  # reported by the main thread, which waits for this one
            self.error = error
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
            with suppress(OSError):  # another's is in it
                self._scratch.parent.rmdir()


def collective_timeout_s(job: TrainJob) -> int:
    """How long ranks wait for each other: for the first one, which samples and has answers judged, as long
    as that may take, so that what is late is named by its own limit and not by theirs."""
    if not isinstance(job, RlhfJob):
        return WAIT_S
    from raymill.rl.reward.task import GRACE_S
    from raymill.rl.rollout.actor_pool import TRIES

    rollout, reward = job.rollout, job.reward
    answers = job.train.global_batch * rollout.group
    units = math.ceil(answers / rollout.batch)
    sampling = (math.ceil(units / max(1, rollout.actors)) + TRIES) * rollout.timeout_s
    judging = answers * len(reward.functions) * (reward.timeout_s + GRACE_S) / reward.workers
    return WAIT_S + math.ceil(sampling + judging)


def _work(config: dict[str, Any]) -> None:
    """In each worker: tell it where it is, and work."""
    import ray

    from raymill.driver.worker import train_worker
    from raymill.engine.heartbeat import NODE

    parent = os.getppid()  # its Ray node, or the server that forked it and ends it with the node
    die_with(parent)  # a stopped worker can't see to it itself
    show_stack_to(parent)  # the watchdog looks from one of its tasks, which has the same parent
    mark("worker")
    os.environ[NODE] = ray.get_runtime_context().get_node_id()
    train_worker(config)


def _fit(resolved: ResolvedRun, workers: int, scratch: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from raymill.cluster.lean_trainer import AttemptTrainer, LeanTrainer

    mark("trainer")
    job = resolved.job
    resources = {"CPU": job.cluster.cpus_per_worker}
    if job.cluster.gpu:
        resources["GPU"] = 1.0
    trainer = LeanTrainer if job.cluster.address == "local" else AttemptTrainer
    trainer(
        _work,
        train_loop_config={"assignment": resolved},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=job.cluster.gpu,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(
            backend="nccl" if job.cluster.gpu else "gloo", timeout_s=collective_timeout_s(job)
        ),
        run_config=RunConfig(
            name=scratch.name,
            storage_path=str(scratch.parent),
            # What follows a failure is decided by driver/failure.py, at each of its kinds.
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
        ),
    ).fit()
