"""Ray actors that process batches, and are replaced when they die or don't answer.

One loop (`ActorPool.run`) decides everything about an actor: start it, load the current weights into it,
give it a batch, or replace it. Every wait has a time limit, and the number of actors that may be lost is
limited.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from raymill.causes import cause_of, innermost
from raymill.errors import RaymillError
from raymill.rl.rollout.engine import (
    START_TIMEOUT_S,
    BatchAnswers,
    BatchResult,
    Engine,
    EngineSpec,
    Generation,
    Incident,
    OnResult,
    PromptBatch,
    RolloutError,
    Sampling,
    require_digest,
)
from raymill.rl.rollout.weights import TensorBucket

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

# Attempts at one batch. Also, a call may lose this many times as many actors as there are.
TRIES = 3
# Interval at which a waiting thread notices that the pool was shut down.
POLL_S = 0.5
# Time to fetch a result that is ready.
FETCH_S = 60.0

Role = Literal["rollout", "reward"]
_VERBS = {"rollout": "sampling", "reward": "judging"}
R = TypeVar("R")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActorLocation:
    """Process in which an actor runs."""

    actor_id: str
    node_id: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.host} (node {self.node_id[:12]}, pid {self.pid})"


class RolloutActor:
    """Actor that holds an engine, built in `start` so that its errors reach the pool unchanged."""

    def __init__(self, spec: EngineSpec[object], timeout_s: float) -> None:
        self._spec = spec
        self._timeout_s = timeout_s
        self._engine: Engine[object] | None = None
        # Version of the engine's weights, once all of them have arrived.
        self._version: int | None = None

    def start(self) -> ActorLocation:
        """Build the engine."""
        self._engine = self._spec.build()
        context = ray.get_runtime_context()
        node_id: str = context.get_node_id()
        return ActorLocation(
            context.get_actor_id() or "", node_id, socket.gethostname(), os.getpid()
        )

    def load(self, refs: Sequence[ray.ObjectRef[TensorBucket]], version: int) -> str:
        """Load weights from the object store, one bucket at a time; return their digest."""
        engine = self._started()
        self._version = None
        engine.load(ray.get(ref, timeout=self._timeout_s) for ref in refs)
        self._version = version
        return engine.digest()

    def generate(self, batch: PromptBatch, sampling: Sampling, version: int) -> Sequence[object]:
        """Process a batch with weights of exactly this version."""
        if self._version != version:
            raise RolloutError(
                f"sampling needs weights of version {version}, the actor has {self._version}"
            )
        results = self._started().generate(batch.prompts, sampling, batch.seeds)
        return self._packed(results)

    def _packed(self, results: Sequence[Any]) -> Sequence[object]:
        """Return results in the form in which they travel."""
        return BatchAnswers.from_completions(results)

    def _started(self) -> Engine[object]:
        if self._engine is None:
            raise RolloutError("the actor hasn't been started")
        return self._engine


class RewardActor(RolloutActor):
    """Actor that holds a reward model, whose results are numbers; Ray's tools show it under this name."""

    def _packed(self, results: Sequence[Any]) -> Sequence[object]:
        return tuple(results)


_ACTORS: dict[Role, type[RolloutActor]] = {"rollout": RolloutActor, "reward": RewardActor}


@dataclass(frozen=True)
class Weights:
    """Version of the weights, in the object store as long as these references exist."""

    refs: tuple[ray.ObjectRef[TensorBucket], ...]
    version: int
    digest: str


@dataclass(frozen=True)
class _Call:
    """Call of an actor: a batch if `batch` is set, else loading if `weights` is set, else its start."""

    ref: ray.ObjectRef[Any]
    limit_s: float
    weights: Weights | None = None
    # Index of the batch.
    batch: int | None = None
    started: float = field(default_factory=monotonic)

    @property
    def deadline(self) -> float:
        return self.started + self.limit_s


@dataclass(eq=False)
class _Member:
    number: int
    handle: ActorHandle
    # Set once it has started.
    location: ActorLocation | None = None
    # Set once it has acknowledged them.
    weights: Weights | None = None
    call: _Call | None = None


class ActorPool(Generic[R]):
    """Actors that share batches. Used by one thread at a time, except for `shutdown`.

    `spawn`: creates the actor of a number.
    """

    def __init__(
        self,
        role: Role,
        spawn: Callable[[int], ActorHandle],
        size: int,
        *,
        timeout_s: float,
        start_timeout_s: float,
    ) -> None:
        self._role, self._spawn = role, spawn
        self._timeout_s, self._start_timeout_s = timeout_s, start_timeout_s
        self._members = [_Member(number, spawn(number)) for number in range(size)]
        self._weights: Weights | None = None
        self._closed = False

    @classmethod
    def from_spec(
        cls,
        role: Role,
        spec: EngineSpec[object],
        size: int,
        *,
        cpus_per_actor: float,
        gpus_per_actor: float,
        timeout_s: float,
        start_timeout_s: float = START_TIMEOUT_S,
        scheduling_strategies: Sequence[PlacementGroupSchedulingStrategy] = (),
    ) -> ActorPool[R]:
        """Create a pool of actors that hold engines.

        `scheduling_strategies`: Ray's strategy for each actor number, so that a replacement takes over the
        resources of the actor that was lost; without them, actors run wherever Ray finds resources.
        """
        remote = ray.remote(_ACTORS[role])

        def spawn(number: int) -> ActorHandle:
            options = remote.options(
                num_cpus=cpus_per_actor,
                num_gpus=gpus_per_actor,
                # Ray would restart an actor without its weights; the pool replaces it instead.
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=(
                    scheduling_strategies[number] if scheduling_strategies else "DEFAULT"
                ),
            )
            return options.remote(spec, timeout_s)

        return cls(role, spawn, size, timeout_s=timeout_s, start_timeout_s=start_timeout_s)

    def start(self) -> None:
        """Wait until all actors have started. An actor that doesn't start isn't replaced."""
        self.run((), None, max_losses=0)

    def drop_weights(self) -> None:
        """Let the object store free the current version, before the next one is put there."""
        self._weights = None
        for member in self._members:
            member.weights = None

    def load_weights(self, weights: Weights) -> tuple[Incident, ...]:
        """Load weights into all actors and wait for them."""
        self._weights = weights
        return self.run((), None).incidents

    def run(
        self,
        batches: Sequence[PromptBatch],
        sampling: Sampling | None,
        max_losses: int | None = None,
        on_result: OnResult[R] | None = None,
    ) -> Generation[R]:
        """Process each batch on whichever actor is free; return results in the order of `batches`.

        `on_result` gets each one as it arrives, in this thread. Without batches, wait until all actors have
        started and hold the current weights.

        Raises:
            RolloutError: the pool was closed, or more actors were lost than may be replaced.
            RaymillError: an engine's own error.
        """
        started, weights = perf_counter(), self._weights
        self._batches, self._queue = batches, deque(range(len(batches)))
        self._results: dict[int, BatchResult[R]] = {}
        self._losses: Counter[int] = Counter()
        self._losses_left = TRIES * len(self._members) if max_losses is None else max_losses
        self._incidents: list[Incident] = []
        self._on_result = on_result
        try:
            while len(self._results) < len(batches) or not (batches or self._ready()):
                if self._closed:
                    raise RolloutError(
                        "the rollout pool has been closed, or ended by an error before"
                    )
                for member in self._members:
                    if member.call is not None:
                        continue
                    if member.location is None:
                        member.call = _Call(member.handle.start.remote(), self._start_timeout_s)
                    elif weights is not None and member.weights is not weights:
                        ref = member.handle.load.remote(list(weights.refs), weights.version)
                        member.call = _Call(ref, self._timeout_s, weights)
                    elif self._queue:
                        assert weights is not None, "weights are loaded before batches are run"
                        index = self._queue.popleft()
                        ref = member.handle.generate.remote(
                            batches[index], sampling, weights.version
                        )
                        member.call = _Call(ref, self._timeout_s, weights, index)
                self._wait()
        except BaseException:
            # Nobody would collect the results of calls that are still running.
            self.shutdown()
            raise
        results = tuple(self._results[index] for index in range(len(batches)))
        return Generation(results, perf_counter() - started, tuple(self._incidents))

    def shutdown(self) -> None:
        """Kill all actors; a thread that waits for them stops soon."""
        self._closed = True
        # When Ray has been shut down, its actors have ended with it.
        if ray.is_initialized():
            for member in self._members:
                ray.kill(member.handle, no_restart=True)

    def _ready(self) -> bool:
        return all(m.location is not None and m.weights is self._weights for m in self._members)

    def _wait(self) -> None:
        """Wait until a call ends, settle all that have ended, and replace actors whose time is over."""
        calls = {m.call.ref: m for m in self._members if m.call is not None}
        first = min(m.call.deadline for m in self._members if m.call is not None)
        wait_s = min(max(0.0, first - monotonic()), POLL_S)
        # Without a timeout, take everything that has ended; only if nothing has, wait for one call.
        ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        if not ready:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=wait_s)
        for ref in ready:
            self._settle(calls.pop(ref))
        for member in calls.values():
            if member.call is not None and monotonic() > member.call.deadline:
                self._replace(member, f"no answer within {member.call.limit_s:g} s")

    def _settle(self, member: _Member) -> None:
        """Handle the value or the error of a call that has ended."""
        call = member.call
        assert call is not None, "only members with a call are settled"
        name = self._name(member)
        try:
            value = ray.get(call.ref, timeout=FETCH_S)
        except RayError as error:
            if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
                # The engine itself failed, and would fail in the same way in another actor.
                inner = innermost(error)
                if isinstance(inner, RaymillError):
                    raise inner from error
                raise RolloutError(
                    f"{name} on {member.location} failed {self._work(call)}: {cause_of(error)}"
                ) from error
            self._replace(member, cause_of(error))
            return
        member.call = None
        if call.batch is not None:
            assert call.weights is not None, "batches are run with weights"
            batch = self._batches[call.batch]
            result = BatchResult[R](batch, value, call.weights.version)
            self._results[call.batch] = result
            if self._on_result is not None:
                self._on_result(call.batch, result)
        elif call.weights is not None:
            require_digest(value, call.weights.digest, f"{name} on {member.location}")
            member.weights = call.weights
        else:
            member.location = value

    def _replace(self, member: _Member, reason: str) -> None:
        """Kill an actor, spawn another in its place, and put its batch first in the queue."""
        call = member.call
        assert call is not None, "only members with a call are replaced"
        location = str(member.location or "no node yet")
        incident = Incident(self._name(member), location, self._work(call), reason)
        self._incidents.append(incident)
        logger.warning("%s", incident)
        ray.kill(member.handle, no_restart=True)
        if call.batch is not None:
            self._losses[call.batch] += 1
            self._queue.appendleft(call.batch)
            if self._losses[call.batch] == TRIES:
                raise RolloutError(f"a batch was lost {TRIES} times. The last: {incident}")
        if not self._losses_left:
            free, total = ray.available_resources(), ray.cluster_resources()
            resources = ", ".join(
                f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}s"
                for name in ("CPU", "GPU")
            )
            raise RolloutError(
                f"{incident}. No more actors are tried. Free in the cluster: {resources}; Ray's logs may "
                "say more"
            )
        self._losses_left -= 1
        member.handle, member.location = self._spawn(member.number), None
        member.weights = member.call = None

    def _name(self, member: _Member) -> str:
        actor_id = "" if member.location is None else f" ({member.location.actor_id})"
        return f"{self._role} actor {member.number}{actor_id}"

    def _work(self, call: _Call) -> str:
        if call.batch is not None:
            return f"{_VERBS[self._role]} batch {call.batch}, a {self._batches[call.batch]}"
        return "starting" if call.weights is None else "loading weights"
