"""Actors that do units of work, and are replaced when they die or don't answer.

All that happens to an actor is decided in one loop (`_turn`): start it, bring it the current weights, give
it a unit, or give it up. Every wait has a limit, and so has the number of actors that may be lost.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError

from raymill.causes import cause_of, innermost
from raymill.errors import RaymillError
from raymill.rl.rollout.actor import Place, RewardActor, SamplingActor
from raymill.rl.rollout.batches import Unit
from raymill.rl.rollout.engine import EngineSpec, Sampling
from raymill.rl.rollout.failure import Incident, RolloutError, require_digest
from raymill.rl.rollout.interface import UnitResult

TRIES = 3  # of a unit; and as many actors may be lost in a call as there are, this many times
POLL_S = 0.5  # so that a crew which is disbanded meanwhile notices
START_TIMEOUT_S = 300.0  # for a place in the cluster, and for importing libraries there
FETCH_S = 60.0  # for a result that is ready

Role = Literal["rollout", "reward"]
_ACTORS = {"rollout": SamplingActor, "reward": RewardActor}
_WORK = {"rollout": "sampling", "reward": "judging"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """A version of the weights, in the object store for as long as somebody may need it."""

    refs: tuple[Any, ...]
    version: int
    digest: str


@dataclass(frozen=True)
class _Call:
    """What an actor is doing: starting, or else taking over weights, unless it has a unit."""

    ref: Any
    deadline: float
    limit_s: float
    weights: Weights | None = None
    unit: int | None = None


@dataclass(eq=False)
class _Member:
    number: int
    handle: Any
    place: Place | None = None  # once it has started
    weights: Weights | None = None  # once it has acknowledged them
    call: _Call | None = None

    @property
    def name(self) -> str:
        return f"{self.number}" if self.place is None else f"{self.number} ({self.place.actor_id})"


class ActorPool:
    """`spawn` makes the actor of a number. Used by one thread at a time, but for `shutdown`."""

    def __init__(
        self,
        role: Role,
        spawn: Callable[[int], Any],
        size: int,
        *,
        timeout_s: float,
        start_timeout_s: float,
    ) -> None:
        self._role, self._hire = role, spawn
        self._timeout_s, self._start_timeout_s = timeout_s, start_timeout_s
        self._members = [_Member(number, spawn(number)) for number in range(size)]
        self._weights: Weights | None = None
        self._disbanded = False
        self._incidents: list[Incident] = []
        self._begin((), None)

    @classmethod
    def of(
        cls,
        role: Role,
        spec: EngineSpec,
        size: int,
        *,
        cpus_per_actor: float,
        gpus_per_actor: float,
        timeout_s: float,
        start_timeout_s: float = START_TIMEOUT_S,
        places: Sequence[Any] = (),
    ) -> ActorPool:
        """A crew of engines. `places`: Ray's scheduling strategy for each, so that one which takes
        another's place takes its resources too; none: wherever Ray has room."""
        remote = ray.remote(_ACTORS[role])

        def spawn(number: int) -> Any:
            options = remote.options(
                num_cpus=cpus_per_actor,
                num_gpus=gpus_per_actor,
                max_restarts=0,  # it would come back without weights
                max_task_retries=0,
                scheduling_strategy=places[number] if places else "DEFAULT",
            )
            return options.remote(spec, timeout_s)

        return cls(
            role,
            spawn,
            size,
            timeout_s=timeout_s,
            start_timeout_s=start_timeout_s,
        )

    def start(self) -> None:
        """Wait until all actors have started; here nothing is tried twice."""
        self._begin((), None)
        self._losses_left = 0
        self._until(lambda: all(member.place is not None for member in self._members))

    def drop_weights(self) -> None:
        """Let the object store forget the current version, before it is given another."""
        self._weights = None
        for member in self._members:
            member.weights = None

    def load_weights(self, weights: Weights) -> list[Incident]:
        """Wait until all actors have taken over these weights."""
        self._begin((), None)
        self._weights = weights
        self._until(lambda: all(m.weights is weights for m in self._members))
        return self._incidents

    def work(
        self, units: Sequence[Unit], sampling: Sampling
    ) -> tuple[list[UnitResult], list[Incident]]:
        """Each unit by whichever actor is free; results in the order of `units`."""
        self._begin(units, sampling)
        self._until(lambda: len(self._results) == len(units))
        return [self._results[index] for index in range(len(units))], self._incidents

    def shutdown(self) -> None:
        """Kill all actors; a thread that waits for them stops soon."""
        self._disbanded = True
        if ray.is_initialized():  # they have ended with Ray otherwise
            for member in self._members:
                ray.kill(member.handle, no_restart=True)

    def _begin(self, units: Sequence[Unit], sampling: Sampling | None) -> None:
        self._units, self._sampling = units, sampling
        self._waiting = deque(range(len(units)))
        self._results: dict[int, UnitResult] = {}
        self._lost: Counter[int] = Counter()
        self._losses_left = TRIES * len(self._members)
        self._incidents = []

    def _until(self, reached: Callable[[], bool]) -> None:
        try:
            while not reached():
                self._turn()
        except BaseException:
            self.shutdown()  # whatever still runs would answer a question that nobody asks any more
            raise

    def _turn(self) -> None:
        """Give everybody something to do, wait until something happens, and see to it."""
        if self._disbanded:
            raise RolloutError("the rollout pool has been closed, or ended by an error before")
        for member in self._members:
            if member.call is None:
                member.call = self._next_call(member)
        calls = {m.call.ref: m for m in self._members if m.call is not None}
        first = min(m.call.deadline for m in self._members if m.call is not None)
        wait_s = min(max(0.0, first - monotonic()), POLL_S)
        ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        if not ready:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=wait_s)
        for ref in ready:
            self._settle(calls.pop(ref))
        for member in calls.values():
            if member.call is not None and monotonic() > member.call.deadline:
                self._replace(member, f"no answer within {member.call.limit_s:g} s")

    def _next_call(self, member: _Member) -> _Call | None:
        if member.place is None:
            limit_s = self._start_timeout_s
            return _Call(member.handle.start.remote(), monotonic() + limit_s, limit_s)
        limit_s, weights = self._timeout_s, self._weights
        if weights is not None and member.weights is not weights:
            ref = member.handle.load.remote(list(weights.refs), weights.version)
            return _Call(ref, monotonic() + limit_s, limit_s, weights)
        if self._waiting:
            assert weights is not None
            index = self._waiting.popleft()
            ref = member.handle.generate.remote(self._units[index], self._sampling, weights.version)
            return _Call(ref, monotonic() + limit_s, limit_s, weights, index)
        return None

    def _settle(self, member: _Member) -> None:
        """Take what a finished call returned or raised."""
        call = member.call
        assert call is not None
        try:
            value = ray.get(call.ref, timeout=FETCH_S)
        except RayError as error:
            if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
                # The engine refused, as another one would.
                raise self._refusal(member, call, error) from error
            self._replace(member, cause_of(error))
            return
        member.call = None
        if call.unit is not None:
            assert call.weights is not None
            self._results[call.unit] = UnitResult(
                self._units[call.unit], value, call.weights.version
            )
        elif call.weights is not None:
            require_digest(value, call.weights.digest, f"{self._named(member)} on {member.place}")
            member.weights = call.weights
        else:
            member.place = value

    def _refusal(self, member: _Member, call: _Call, error: BaseException) -> RaymillError:
        inner = innermost(error)
        if isinstance(inner, RaymillError):
            return inner
        return RolloutError(
            f"{self._named(member)} on {member.place} failed {self._work_of(call)}: {cause_of(error)}"
        )

    def _replace(self, member: _Member, reason: str) -> None:
        """Kill an actor, hire another in its place, and put its unit first in the queue."""
        call = member.call
        assert call is not None
        place = str(member.place or "no node yet")
        incident = Incident(self._named(member), place, self._work_of(call), reason)
        self._incidents.append(incident)
        logger.warning("%s", incident)
        ray.kill(member.handle, no_restart=True)
        if call.unit is not None:
            self._lost[call.unit] += 1
            self._waiting.appendleft(call.unit)
            if self._lost[call.unit] == TRIES:
                raise RolloutError(f"a unit was lost {TRIES} times. The last: {incident}")
        if not self._losses_left:
            raise RolloutError(f"{incident}. {_resources()}")
        self._losses_left -= 1
        member.handle, member.place = self._hire(member.number), None
        member.weights = member.call = None

    def _named(self, member: _Member) -> str:
        return f"{self._role} actor {member.name}"

    def _work_of(self, call: _Call) -> str:
        if call.unit is not None:
            return f"{_WORK[self._role]} unit {call.unit}, a {self._units[call.unit]}"
        return "starting" if call.weights is None else "taking over weights"


def _resources() -> str:
    free, total = ray.available_resources(), ray.cluster_resources()
    spelled = ", ".join(
        f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}s" for name in ("CPU", "GPU")
    )
    return (
        f"No more actors are tried. Free in the cluster: {spelled}; see Ray's logs for its own view"
    )
