"""A run's attempts: start workers, follow them, and after a failure start again from the last commit."""

from __future__ import annotations

import shutil
import statistics
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raymill.checkpoint.lease import Lease
from raymill.checkpoint.retention import committed_steps
from raymill.cluster.capacity import (
    draining_nodes,
    largest_fit,
    requesting_capacity,
    room_for_workers,
)
from raymill.cluster.session import NO_ACTORS, ActorResources
from raymill.driver.diagnosis import as_raised, diagnose, final_error
from raymill.driver.failure import Cause, Failure, GiveUp, RunState, decide_retry
from raymill.driver.launch import WorkerRun
from raymill.driver.watchdog import Watchdog, end_one
from raymill.engine.failure_note import FailureNote, read_notes
from raymill.engine.resolved_run import ResolvedRun
from raymill.errors import CheckpointError, ClusterError, StorageError
from raymill.plan.batch import allowed_workers
from raymill.schema.jobs import RlhfJob
from raymill.track.console import RunConsole
from raymill.track.follow import Follower
from raymill.track.state_log import StateLog

POLL_S = 0.2
LOOK_S = 10.0  # between two looks at the cluster
ROOM_S = 600.0  # a cluster that grows on demand takes minutes
STARTING = "starting workers …"


@dataclass(frozen=True)
class Ending:
    """How an attempt ended: what the workers wrote last, or what became of them."""

    status: str | None
    error: BaseException | None
    step: int
    notes: Mapping[int, FailureNote] = field(default_factory=dict)  # of ranks that couldn't go on


class RunSupervisor:
    """Runs a training job to its end on a Ray that is connected.

    `stop` and `drain` may be called at any time, from a signal handler.
    """

    def __init__(
        self,
        resolved: ResolvedRun,
        lease: Lease,
        console: RunConsole,
        history: StateLog,
        resume: str,
        beside: ActorResources = NO_ACTORS,
    ) -> None:
        self._resolved = resolved
        self._lease = lease
        self._console = console
        self._history = history
        self._resume = resume
        self._beside = beside
        self._failures: list[Failure] = []
        self._asked: RunState | None = None  # to end, by a person or by whoever runs the machine
        self._resizing = False
        self._workers = 0
        self._starts = 0  # of workers; each fences off the ones before
        self._nodes: set[str] = set()  # that this attempt is on, once it is there
        self._watchdog: Watchdog | None = None
        self._step_s: deque[float] = deque(maxlen=50)

    def stop(self) -> None:
        """Commit and stop, as a person asks."""
        self._ask(RunState.COMMITTING)

    def drain(self) -> None:
        """Commit and stop, as the machine's owner asks, who doesn't wait for long."""
        self._ask(RunState.DRAINING)

    @property
    def drained(self) -> bool:
        return self._asked is RunState.DRAINING

    @property
    def _moving(self) -> bool:
        """Whether the workers were asked to end only to go on in another number."""
        return self._resizing and self._asked is None

    @property
    def _winding_up(self) -> bool:
        """Whether the workers were asked to end, for good or to go on in another number."""
        return self._resizing or self._asked is not None

    def _ask(self, how: RunState) -> None:
        if not self.drained:  # which says how it ends
            self._asked = how
        self._resolved.stop_request.touch()

    def run(self) -> str:
        """To the end; returns "finished", "stopped" after a checkpoint, or, where it was asked to stop and
        could commit nothing any more, "waiting" for room or "broken off" by a failure.

        Raises:
            RaymillError: it can't go on; what was committed stays.
        """
        unstarted = "waiting"
        while True:
            self._resizing = False
            self._resolved.stop_request.unlink(missing_ok=True)
            self._workers = self._wait_for_room()
            if self._asked is not None:  # also where that was between the two lines above
                return unstarted
            self._history.enter(RunState.STARTING, workers=self._workers)
            ending = self._attempt()
            unstarted = "waiting"
            if ending.status == "rewind":
                continue
            if ending.status in ("finished", "stopped"):
                if ending.status == "stopped" and self._moving:
                    continue
                return ending.status
            if not self._recover(ending):
                return "broken off"
            unstarted = "broken off"

    def _wait_for_room(self) -> int:
        """Workers to start with: as many as there is room for, of those that the batch allows."""
        allowed = allowed_workers(self._resolved.job)
        cluster = self._resolved.job.cluster
        deadline = time.monotonic() + ROOM_S
        told = False
        with ExitStack() as waiting:
            while self._asked is None:
                self._lease.check()
                room = room_for_workers(cluster, self._beside)
                size = largest_fit(allowed, room)
                if size is not None:
                    return size
                wanted = (
                    f"one of {', '.join(map(str, allowed))}" if allowed[1:] else f"{allowed[0]}"
                )
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"the cluster had room for {room} workers for {ROOM_S:.0f} s, and the run takes "
                        f"{wanted}; what was committed stays, and the same command resumes:\n  {self._resume}"
                    )
                if not told:
                    self._console.say(
                        f"waiting: the cluster has room for {room} workers, the run takes {wanted} …"
                    )
                    waiting.enter_context(requesting_capacity(allowed[0], cluster))
                    told = True
                time.sleep(POLL_S * 5)
        return 0

    def _attempt(self) -> Ending:
        """Start workers and show the run's events until they have ended."""
        resolved = self._resolved
        self._console.waiting(STARTING)
        self._nodes.clear()
        self._step_s.clear()
        # Of this process's start before; another's, who may hold the run by now, aren't ours to delete.
        shutil.rmtree(replace(resolved, start=self._starts).pulses, ignore_errors=True)
        self._starts += 1
        # Workers of before, should they still live, have nothing to say from here on.
        follower = Follower.at_end(resolved.event_log)
        resolved = replace(resolved, start=self._starts)
        self._watch_from_now(resolved.pulses)
        workers = WorkerRun(resolved, self._workers)
        look = time.monotonic() + LOOK_S
        ending: dict[str, Any] = {}
        step = last_committed(resolved.checkpoints)
        while True:
            ended = workers.wait(POLL_S)
            for event in _news(follower):
                self._console.show(event)
                step = event["step"] if event["kind"] == "step" else step
                if event["kind"] in ("status", "attempt"):
                    ending = event
                self._note(event)
                self._enter(event)
            if ended:
                break
            self._lease.check()
            self._watch(resolved.pulses)
            if time.monotonic() > look and self._nodes and not self._winding_up:
                look = time.monotonic() + LOOK_S
                self._look_at_the_cluster()
        if ending.get("status") == "failed":
            error = as_raised(ending["error_type"], ending["error"])
            if not self._moving or ending["error_type"] != CheckpointError.__name__:
                raise error
            # Nobody asked it to end: it goes on from the checkpoint before.
            return Ending("failed", error, step)
        if ending.get("status") == "rewind":
            self._console.say(f"warning: {ending['why']}")
            self._history.enter(RunState.RECOVERING, cause="rewind", what=ending["why"], step=step)
        notes = read_notes(resolved.pulses, self._workers)
        return Ending(ending.get("status"), workers.error, step, notes)

    def _watch(self, pulses: Path) -> None:
        """End a rank that stands still; the others end with it, and the run goes on from its last commit."""
        assert self._watchdog is not None
        behind = self._watchdog.look(
            statistics.median(self._step_s) if len(self._step_s) > 2 else None
        )
        if not behind:
            return
        self._watch_from_now(pulses)  # again, should that not end it
        what = end_one(behind, self._resolved.run_dir / "logs")
        self._console.say(f"warning: {what}")
        self._history.enter(RunState.RECOVERING, what=what)

    def _note(self, event: dict[str, Any]) -> None:
        """What the watching needs of an event."""
        if event["kind"] == "attempt":
            self._nodes = {rank["node"] for rank in event["ranks"]}
        elif event["kind"] == "step":
            self._step_s.append(event["perf/step_s"])

    def _watch_from_now(self, pulses: Path) -> None:
        job = self._resolved.job
        self._watchdog = Watchdog(
            pulses,
            self._workers,
            job.watchdog.timeout_s,
            samples=isinstance(job, RlhfJob),
        )

    def _enter(self, event: dict[str, Any]) -> None:
        if self._winding_up:
            self._history.enter(self._asked or RunState.COMMITTING)
        elif event["kind"] == "attempt":
            self._history.enter(RunState.RUNNING, attempt=event["attempt"], step=event["step"])
        elif event["kind"] == "step" and event["step"] == self._resolved.total_steps:
            self._history.enter(RunState.COMMITTING)

    def _look_at_the_cluster(self) -> None:
        """Move the run when nodes that it sits on are about to go, or when more workers have room."""
        leaving = draining_nodes() & self._nodes
        size = largest_fit(
            allowed_workers(self._resolved.job),
            room_for_workers(self._resolved.job.cluster, self._beside),
        )
        if leaving and size is None:
            self._console.say(
                "the nodes it runs on are being drained, and there is room nowhere else"
            )
            self.drain()
        elif leaving or (size is not None and size > self._workers):
            why = (
                "nodes it runs on are being drained"
                if leaving
                else f"there is room for {size} workers"
            )
            self._console.say(f"{why}: after a checkpoint the run goes on with {size}")
            self._resizing = True
            self._resolved.stop_request.touch()

    def _recover(self, ending: Ending) -> bool:
        """Tell of a failure and wait before the next start; False when the run was asked to end meanwhile.

        Raises:
            ClusterError: the run had better not be tried again.
            RaymillError: a rank's own, which another try would meet again.
        """
        cause, what = diagnose(ending.error, ending.notes)
        committed = last_committed(self._resolved.checkpoints)
        self._failures.append(Failure(cause, what, ending.step, committed))
        facts = {"cause": cause.value, "what": what, "step": ending.step, "committed": committed}
        if (final := final_error(ending.error, ending.notes)) is not None:
            self._history.enter(RunState.FAILED, **facts)
            raise final
        decision = decide_retry(self._failures, self._resolved.job.run.max_failures)
        logs = self._resolved.run_dir / "logs"
        if isinstance(decision, GiveUp):
            advice = _memory_advice(self._resolved) if cause is Cause.MEMORY else ""
            self._history.enter(RunState.FAILED, why=decision.why, **facts)
            raise ClusterError(
                f"{decision.why}: {what}{advice}\nTheir output is in {logs}; what was committed stays, and the "
                f"same command resumes:\n  {self._resume}"
            ) from ending.error
        self._history.enter(RunState.RECOVERING, **facts)
        again = f"; trying again in {decision.pause_s:g} s from step {committed}"
        self._console.say(
            f"warning: after step {ending.step}: {what}{again if self._asked is None else ''} "
            f"(output in {logs})"
        )
        until = time.monotonic() + decision.pause_s
        while time.monotonic() < until and self._asked is None:
            time.sleep(POLL_S)
        return self._asked is None


def _news(follower: Follower) -> list[dict[str, Any]]:
    """A journal's new events; none while it can't be read: the workers go on, and it is read later."""
    try:
        return follower.read()
    except StorageError:
        return []


def last_committed(checkpoints: Path) -> int:
    """The newest checkpoint's step; 0 where there is none."""
    steps = committed_steps(checkpoints)
    return steps[-1][0] if steps else 0


def _memory_advice(resolved: ResolvedRun) -> str:
    """What the plan says of a worker's memory, and what lowers it."""
    train, zero = resolved.job.train, resolved.job.zero
    hints = [
        f"lower train.micro_batch (now {train.micro_batch})" if train.micro_batch > 1 else "",
        f"raise zero.stage (now {zero.stage}) or run.workers"
        if zero.stage < 3
        else "raise run.workers",
        "" if train.activation_checkpointing else "set train.activation_checkpointing=true",
    ]
    planned = resolved.memory_plan or "unknown"
    return f"\nplanned: {planned}; to need less: {', or '.join(filter(None, hints))}."
