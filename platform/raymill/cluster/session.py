"""Connection to Ray: start it here or join a cluster, with quiet logs and explicit
authentication."""

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

from raymill.errors import ClusterError
from raymill.schema.sections import ClusterConfig, RunConfig
from raymill.timeline import mark

# A local Ray is started up to so many times, since its processes have only 15 s to find each other.
STARTS = 3
# Cores for reading data while workers and actors hold theirs.
DATA_READING_CPUS = 0.5
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ActorResources:
    """Resources of a job's actors, all of one size, in addition to the workers'."""

    actors: int = 0
    cpus_each: float = 0.0
    gpus_each: float = 0.0

    @property
    def cpus(self) -> float:
        """CPUs of all actors."""
        return self.actors * self.cpus_each

    @property
    def gpus(self) -> float:
        """GPUs of all actors."""
        return self.actors * self.gpus_each


NO_ACTORS = ActorResources()


@contextmanager
def connect(
    cluster: ClusterConfig,
    run: RunConfig | None = None,
    actor_resources: ActorResources = NO_ACTORS,
) -> Iterator[None]:
    """Connect to Ray for the length of a `with` block; an existing session is used as it is.

    `run` determines the number of workers that must fit, if there are any; `actor_resources` are
    those of a job's actors.

    Raises:
        ClusterError: no Ray answers at `cluster.address`, or a Ray that was started here can't hold
            the fewest workers that `run` takes; a cluster may still grow.
    """
    mark("resolved")
    _silence_ray()
    if cluster.address == "local":
        _require_token()
    import ray

    # A surrounding block has connected already, and will disconnect.
    if ray.is_initialized():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            if cluster.address == "local":
                _start_local(cluster, run.most if run else 0, actor_resources)
            else:
                _join(cluster)
        # While Ray starts, its own handler turns SIGTERM into SystemExit.
        except SystemExit:
            if callable(handler):
                handler(signal.SIGTERM, None)
            raise
        if callable(handler) and threading.current_thread() is threading.main_thread():
            # Ray has replaced it by its own.
            signal.signal(signal.SIGTERM, handler)
        mark("ray")
        # A local Ray can't grow.
        if cluster.address == "local":
            _check_capacity(cluster, run.least if run else 0, actor_resources)
        yield
    finally:
        ray.shutdown()


def warm_up(cluster: ClusterConfig) -> None:
    """Start importing the modules that a training job needs.

    Ray Train needs torch in the driver, so a thread imports it; a separate process imports the
    modules for workers of a Ray that will be started here. Call it before anything imports Ray, which
    reads its settings from the environment then.
    """
    threading.Thread(target=import_module, args=("torch",), daemon=True).start()
    _silence_ray()
    if cluster.address != "local":
        return
    from raymill.cluster import local_ray

    # Forks inherit the server's environment, so it must be complete when the server starts.
    _require_token()
    local_ray.warm_up(cluster.gpu)


def _silence_ray() -> None:
    """Silence Ray's messages, which go to its log folder; Raymill reports what a user must know."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # A call that comes after the session has ended must fail; Ray would start a second Ray for it.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # Otherwise Ray replaces Python's `print` by its own once it has printed a worker's line. The
    # documentation of `print` is in the embedded corpus, which must be the same in every process.
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    # driver/supervisor.py watches for draining nodes; Ray's actor for it would start with each attempt.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Training has priority over other work of Ray and the driver.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _require_token() -> None:
    """Protect this session by a token of its own, so that nobody else can submit work to it.

    Nothing is written to the home directory. Ray reads the variables when it is imported.
    """
    # Ray's controller checks its workers in this interval; with a few of them, often costs nothing.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Without a dashboard nobody reads what Ray's agent measures of every process.
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _start_local(cluster: ClusterConfig, workers: int, actor_resources: ActorResources) -> None:
    import ray

    from raymill.cluster.local_ray import start_local_ray

    cores = len(os.sched_getaffinity(0))
    # One slot more than the workers take, so that reading data never waits for training to end.
    slots = max(cores, math.ceil(workers * cluster.cpus_per_worker + actor_resources.cpus) + 1)
    for tries_left in reversed(range(STARTS)):
        try:
            start_local_ray(slots)
        # On a busy machine Ray exceeds its own time limits, and raises errors of any class.
        except Exception as error:
            ray.shutdown()
            if not tries_left:
                raise ClusterError(
                    f"Ray didn't start on this machine, tried {STARTS} times: {error} Is the machine very "
                    "busy, or its disk full? Ray's logs are in /tmp/ray/session_latest/logs"
                ) from error
        else:
            return


def _join(cluster: ClusterConfig) -> None:
    import ray

    try:
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # Workers on other nodes get exactly the package that this process runs, whatever is
            # installed there.
            runtime_env={"py_modules": [str(_PACKAGE)]},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray answered at cluster.address={cluster.address}: {error}. Start one with "
            "`ray start --head`, or use cluster=local"
        ) from error


def _check_capacity(cluster: ClusterConfig, workers: int, actor_resources: ActorResources) -> None:
    import ray

    # Checked before the job starts, because its workers would wait forever.
    total = ray.cluster_resources()
    needed = {
        "CPU": workers * cluster.cpus_per_worker + actor_resources.cpus + DATA_READING_CPUS,
        "GPU": (float(workers) if cluster.gpu else 0.0) + actor_resources.gpus,
    }
    for name, amount in needed.items():
        if total.get(name, 0.0) < amount:
            with_actors = " with its actors" if actor_resources != NO_ACTORS else ""
            raise ClusterError(
                f"run.workers={workers}{with_actors} needs {amount:g} {name}s, the cluster has "
                f"{total.get(name, 0.0):g}; request fewer workers or actors, or a larger cluster"
            )
