"""The API on Ray Serve: its models in replicas, which follow the version that an alias of the registry names.

`build` is for Ray Serve's own commands and Kubernetes (k8s/serve), `serve_on_ray` for `jobs/serve.py`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from ray import serve

from raymill.annotate.database import Database
from raymill.cluster.session import ActorResources, connect
from raymill.config.compose import load
from raymill.errors import RaymillError
from raymill.schema.serving import ServeJob
from raymill.serve.app import ServeApplication
from raymill.serve.keys import ApiKeys, keys_file, read_keys
from raymill.serve.opening import feedback_on, open_models
from raymill.serve.ray_replicas import (
    ReplicaOptions,
    all_metrics,
    deploy,
    replicas_of,
    start_proxies,
    stop,
)
from raymill.track.marker import verified_digest
from raymill.track.registry import resolve_model


@dataclass(frozen=True)
class ServedVersions:
    """Recipe for the application of a replica: the job, exact versions of its models, its API keys.

    `votes`: the file for the page's votes, which all replicas can open.
    """

    job: ServeJob
    versions: tuple[str, ...]
    keys: ApiKeys
    votes: Path | None = None

    def __str__(self) -> str:
        return ", ".join(self.versions)


def build(arguments: Mapping[str, Any]) -> serve.Application:
    """Return the application for Ray Serve's configuration files; `overrides` are those of `jobs/serve.py`.

    Raises:
        RaymillError: the overrides are refused, or a model can't be found or is damaged.
    """
    job: ServeJob = load("serve", list(arguments["overrides"]))
    return application(ServedVersions(job, exact_versions(job), read_keys(keys_file(job.serve))))


def application(served: ServedVersions) -> serve.Application:
    """Return Ray Serve's description of replicas of a job."""
    return replicas_of(partial(open_application, served), replica_options(served.job))


def open_application(served: ServedVersions) -> ServeApplication:
    """Load the models, in a replica."""
    models = {model.id: model for model in open_models(served.job, served.versions)}
    feedback = None
    if served.votes is not None:
        feedback = feedback_on(Database(served.votes), models.values())
    return ServeApplication(models, served.job.serve, served.keys, feedback, all_metrics)


def replica_options(job: ServeJob) -> ReplicaOptions:
    """Return the options of a job's replicas."""
    settings = job.serve
    return ReplicaOptions(
        settings.replicas,
        settings.max_replicas,
        cpus=job.cluster.cpus_per_worker,
        gpus=settings.tensor_parallel if job.cluster.gpu else 0,
        # A few more than are drawn, so that a slot finds its next answer at once; others wait in front of all
        # replicas, of which any may take them.
        open_requests=settings.requests
        if settings.slots is None
        else min(settings.requests, settings.slots + max(4, settings.slots // 4)),
        # Without slots the number of replicas is fixed.
        target=settings.slots or settings.requests,
        queue=settings.queue,
        longest_s=settings.request_s,
        surge=settings.surge,
    )


def serve_on_ray(job: ServeJob, keys: ApiKeys, votes: Path | None) -> None:
    """Serve on Ray until SIGINT or SIGTERM; answers that were begun are completed then.

    On a cluster the page takes no votes: its file would have to be locked over a network.

    Raises:
        ConfigError, DataError: a model can't be found, or is damaged.
        ClusterError: Ray doesn't start, or no replica does.
    """
    if job.cluster.address != "local":
        votes = None
    served = ServedVersions(job, exact_versions(job), keys, votes)
    options = replica_options(job)
    most = (options.most or options.replicas) + options.surge
    resources = ActorResources(most, options.cpus, options.gpus)
    with connect(job.cluster, actor_resources=resources), _stopping() as stopped:
        start_proxies(job.host, job.port, options.longest_s)
        try:
            deploy(application(served), str(served))
            print(f"serving {served} at http://{job.host}:{job.port}", flush=True)
            if job.serve.follow:
                follow(served, stopped, lambda newer: deploy(application(newer), str(newer)))
            stopped.wait()
        finally:
            stop()


def follow(
    served: ServedVersions, stopped: threading.Event, roll: Callable[[ServedVersions], None]
) -> ServedVersions:
    """Roll over to whatever versions the aliases name, until `stopped`; return what is served then.

    A registry that doesn't answer, and a version that is damaged or doesn't start, change nothing.
    """
    told = ""
    while not stopped.wait(served.job.serve.follow_every_s):
        try:
            versions = exact_versions(served.job, known=served.versions)
            if versions != served.versions:
                newer = replace(served, versions=versions)
                roll(newer)
                served = newer
                print(f"now serving {served}", flush=True)
            told = ""
        except RaymillError as error:
            # Once, not every few seconds.
            if str(error) != told:
                told = str(error)
                print(f"still serving {served}: {told}", flush=True)
    return served


def exact_versions(job: ServeJob, known: Sequence[str] = ()) -> tuple[str, ...]:
    """Resolve a job's models to exact versions; those that aren't `known` are verified.

    Raises:
        RaymillError: one can't be found, or is damaged.
    """
    versions = []
    for reference in job.model:
        resolved = resolve_model(reference, job.tracking, job.storage.folder)
        if resolved.name not in known:
            verified_digest(resolved.folder)
        versions.append(resolved.name)
    return tuple(versions)


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set."""
    stopped = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = {one: signal.signal(one, handle) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
