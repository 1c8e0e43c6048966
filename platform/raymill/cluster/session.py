"""One door to Ray: start it here, or join one; quietly, and with authentication always explicit."""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from raymill.errors import ClusterError
from raymill.schema.sections import ClusterConfig, RunConfig
from raymill.timeline import mark

STARTS = 3  # of a local Ray, whose processes have 15 s to find each other
READING = 0.5  # of a core, for data to be read while workers and actors hold theirs
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ActorResources:
    """Actors besides the workers, all of one size."""

    actors: int = 0
    cpus_each: float = 0.0
    gpus_each: float = 0.0

    @property
    def cpus(self) -> float:
        return self.actors * self.cpus_each

    @property
    def gpus(self) -> float:
        return self.actors * self.gpus_each


NO_ACTORS = ActorResources()


@contextmanager
def connect(
    cluster: ClusterConfig, run: RunConfig | None = None, beside: ActorResources = NO_ACTORS
) -> Iterator[None]:
    """Connect to Ray for the length of a `with` block; a session that exists already is used as it is.

    `run`: whose workers it must hold, if there are any; `beside`: what a job's actors take besides them.

    Raises:
        ClusterError: no Ray answers at `cluster.address`, or one that was started here can't hold the fewest
            workers that `run` takes; a cluster may grow yet.
    """
    mark("resolved")
    _quieten()
    if cluster.address == "local":
        _guard()
    import ray

    if ray.is_initialized():
        yield
        return
    asked = signal.getsignal(signal.SIGTERM)
    try:
        try:
            if cluster.address == "local":
                _start_local(cluster, run.most if run else 0, beside)
            else:
                _join(cluster)
        except SystemExit:  # by Ray's own way with SIGTERM, which it takes over while it starts
            if callable(asked):
                asked(signal.SIGTERM, None)
            raise
        if callable(asked) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, asked)  # Ray has put its own in its place
        mark("ray")
        if cluster.address == "local":  # which can't grow
            _check_capacity(cluster, run.least if run else 0, beside)
        yield
    finally:
        ray.shutdown()


def warm_up(cluster: ClusterConfig) -> None:
    """Begin to import what a training job needs: torch in a thread, since Ray Train wants it in the driver, and
    what workers of a Ray that will be started here need in a process beside this one."""
    threading.Thread(target=import_module, args=("torch",), daemon=True).start()
    if cluster.address != "local":
        return
    from raymill.cluster import local_ray

    # What the server is started with is what its forks have.
    _quieten()
    _guard()
    local_ray.warm_up(cluster.gpu)


def _quieten() -> None:
    """Ray's own chatter goes to its log folder; what the user must know, we say ourselves."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # A call that comes after the session has ended must fail; Ray would start a second Ray for it.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # Or else Ray, once it has printed a worker's line, puts a `print` of its own in the place of Python's. The
    # documentation of Python's is in the embedded corpus, which must be the same in every process.
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    # Nodes that are drained are seen by driver/supervisor.py; Ray's actor for it would start with each attempt.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Training comes first; what Ray and the driver do beside it can wait.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _guard() -> None:
    """A token of this session's own: nobody else on the machine can submit work to it, and nothing is
    left in the home directory. Ray reads the variables when it is imported."""
    # Between two looks of Ray's controller at the workers; with a few of them, often costs nothing.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Without a dashboard nobody reads what Ray's agent measures of every process, at a tenth of a core.
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _start_local(cluster: ClusterConfig, workers: int, beside: ActorResources) -> None:
    import ray

    from raymill.cluster.local_ray import start_local_ray

    cores = len(os.sched_getaffinity(0))
    # One slot more than the workers take, so that reading never waits for training to end.
    slots = max(cores, math.ceil(workers * cluster.cpus_per_worker + beside.cpus) + 1)
    for left in reversed(range(STARTS)):
        try:
            start_local_ray(slots)
        except (
            Exception
        ) as error:  # Ray raises it as it is, where a busy machine exceeds a limit of its own
            ray.shutdown()
            if not left:
                raise ClusterError(
                    f"Ray didn't start on this machine, tried {STARTS} times: {error} Is the machine very "
                    "busy, or its disk full? Ray's logs are in /tmp/ray/session_latest/logs"
                ) from error
        else:
            return


def _join(cluster: ClusterConfig) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Workers on other nodes get exactly the package that this process runs, whatever is installed there.
    options["runtime_env"] = {"py_modules": [str(_PACKAGE)]}
    try:
        ray.init(address=cluster.address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray answered at cluster.address={cluster.address}: {error}. Start one with "
            "`ray start --head`, or use cluster=local"
        ) from error


def _check_capacity(cluster: ClusterConfig, workers: int, beside: ActorResources) -> None:
    import ray

    total = ray.cluster_resources()
    needed = {
        "CPU": workers * cluster.cpus_per_worker + beside.cpus + READING,
        "GPU": (float(workers) if cluster.gpu else 0.0) + beside.gpus,
    }
    for name, amount in needed.items():
        if total.get(name, 0.0) < amount:
            raise ClusterError(
                f"run.workers={workers}{' with its actors' if beside != NO_ACTORS else ''} needs {amount:g} "
                f"{name}s, the cluster has {total.get(name, 0.0):g}; ask for fewer workers or actors, "
                "or a larger cluster"
            )
