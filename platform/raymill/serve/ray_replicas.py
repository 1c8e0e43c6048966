"""Ray Serve: replicas of an application, which Ray keeps alive, scales, and replaces by those of a new version.

What the application answers is its own matter; `ray_app.py` gives it models.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ray import serve
from ray.serve.config import HTTPOptions, RequestRouterConfig
from starlette.types import Receive, Scope, Send

from raymill.errors import ClusterError
from raymill.serve.metrics import merged
from raymill.serve.ray_proxy import CALLBACK, CALLBACK_VARIABLE, RETRY_AFTER_S

APPLICATION = "raymill"
# Beyond the time limit of a request, for its last event.
LAST_EVENT_S = 15.0
HEALTH_EVERY_S = 5.0
HEALTH_TIMEOUT_S = 30.0
METRICS_EVERY_S = 5.0
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
DEPLOYMENT = "replica"
# Time in which the replicas tell their metrics; one that starts or ends may tell none.
TELL_S = 5.0


class CheckedApplication(Protocol):
    """ASGI application that knows whether it works."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        ...

    def metrics(self) -> bytes:
        """Return the metrics of this process, in Prometheus' form."""
        ...

    def check(self) -> None:
        """Raise an error if no request can be answered any more."""
        ...


@dataclass(frozen=True)
class ReplicaOptions:
    """Number of replicas, their resources, their queue, and how they come and go.

    `most`: replicas while many requests are open; None: always `replicas`. `open_requests`: those that a
    replica works on at the same time, of which `target` are few enough to need no further replica. `queue`:
    requests that wait in front of all replicas; more get status 503. `longest_s`: time limit of a request,
    which a replica that is stopped gets to finish. `more_after_s`, `fewer_after_s`: how long there must have
    been too many or too few requests before replicas come and go. `surge`: a new version's replica starts
    before an old one stops, on resources of its own; otherwise the other way round.
    """

    replicas: int
    most: int | None
    cpus: float
    gpus: float
    open_requests: int
    target: int
    queue: int
    longest_s: float
    surge: bool
    more_after_s: float = 10.0
    fewer_after_s: float = 300.0

    def deployment(self) -> dict[str, Any]:
        """Return Ray Serve's names and values."""
        found: dict[str, Any] = {
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
            "max_ongoing_requests": self.open_requests,
            "max_queued_requests": self.queue,
            "backpressure_config": {"status_code": 503, "retry_after_s": RETRY_AFTER_S},
            "graceful_shutdown_timeout_s": self.longest_s + LAST_EVENT_S,
            "graceful_shutdown_wait_loop_s": 0.5,
            "health_check_period_s": HEALTH_EVERY_S,
            "health_check_timeout_s": HEALTH_TIMEOUT_S,
            # Turns of a conversation go to one replica, or to the next where that one is full or gone.
            "request_router_config": RequestRouterConfig(request_router_class=ROUTER),
            # At most one replica more than usual: Ray Serve rounds shares up to whole replicas.
            "max_surge_percent": math.floor(100 / (self.most or self.replicas))
            if self.surge
            else 0,
        }
        if self.most is None:
            return {**found, "num_replicas": self.replicas}
        scaling = {
            "min_replicas": self.replicas,
            "initial_replicas": self.replicas,
            "max_replicas": self.most,
            "target_ongoing_requests": self.target,
            "upscale_delay_s": self.more_after_s,
            "downscale_delay_s": self.fewer_after_s,
            "look_back_period_s": self.more_after_s,
            "metrics_interval_s": min(self.more_after_s, METRICS_EVERY_S),
        }
        return {**found, "autoscaling_config": scaling}


@serve.ingress()
class Replica:
    """One process with the application. `open_application` loads it, in that process."""

    def __init__(self, open_application: Callable[[], CheckedApplication]) -> None:
        self._application = open_application()

    def __serve_build_asgi_app__(self) -> CheckedApplication:
        """Return what answers requests; Ray Serve calls this once."""
        return self._application

    def metrics(self) -> tuple[str, bytes]:
        """Return the replica's name, and the metrics of its application."""
        return serve.get_replica_context().replica_id.unique_id, self._application.metrics()

    def check_health(self) -> None:
        """Raise an error where the application doesn't work; Ray Serve then replaces the replica."""
        self._application.check()


def replicas_of(
    open_application: Callable[[], CheckedApplication], options: ReplicaOptions
) -> serve.Application:
    """Return Ray Serve's description of replicas; `open_application` is pickled."""
    deployment = serve.deployment(Replica, name=DEPLOYMENT, **options.deployment())
    return deployment.bind(open_application)


async def all_metrics() -> bytes:
    """Return the metrics of all replicas, in one of them; each sample has the label `replica`."""
    handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
    told = await handle.broadcast("metrics").results_async(timeout_s=TELL_S, return_exceptions=True)
    return merged(dict(one for one in told if isinstance(one, tuple)), "replica")


def start_proxies(host: str, port: int, longest_s: float) -> None:
    """Start Ray Serve's HTTP proxies; on a cluster that has them already, theirs remain as they are."""
    # Its messages are in Ray's folder of logs; ours say what a user must know.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location="EveryNode",
        http_options=HTTPOptions(host=host, port=port, request_timeout_s=longest_s + LAST_EVENT_S),
        # Proxies are children of the controller, which inherit its environment.
        controller_options={"runtime_env": {"env_vars": {CALLBACK_VARIABLE: CALLBACK}}},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )


def deploy(application: serve.Application, described: str) -> None:
    """Deploy, or replace the running replicas by these one after the other; return when all are served.

    Raises:
        ClusterError: none of these replicas starts. Those that were running continue.
    """
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        status = serve.status().applications.get(APPLICATION)
        messages = [one.message for one in status.deployments.values()] if status else []
        # A message ends with the stack trace of the replica, and that with the error.
        lines = [line.strip() for line in "\n".join(messages or [str(error)]).splitlines()]
        reason = next((line for line in reversed(lines) if line), "for no reason that Ray knows")
        raise ClusterError(f"no replica of {described} started: {reason}") from error


def stop() -> None:
    """Let replicas finish what they have begun, and end them.

    Ray Serve itself stays: a cluster may serve other applications, and a Ray that was started here ends.
    """
    serve.delete(APPLICATION)
