"""Supervision of a run: start workers, follow them, and after a failure start again from the last commit."""

from __future__ import annotations

import shutil
import statistics
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from raymill.checkpoint.lease import Lease
from raymill.checkpoint.retention import committed_steps
from raymill.cluster.capacity import (
    draining_nodes,
    largest_fit,
    requesting_capacity,
    worker_capacity,
)
from raymill.cluster.session import NO_ACTORS, ActorResources
from raymill.driver.failure import (
    Cause,
    Failure,
    GiveUp,
    RunState,
    as_raised,
    decide_retry,
    diagnose,
    final_error,
    memory_advice,
)
from raymill.driver.heartbeats import HeartbeatReaders
from raymill.driver.launch import WorkerRun
from raymill.driver.watchdog import Watchdog, end_one
from raymill.engine.failure_note import FailureNote, read_notes
from raymill.engine.heartbeat import COMPILE
from raymill.engine.resolved_run import ResolvedRun
from raymill.errors import CheckpointError, ClusterError, StorageError
from raymill.plan.batch import allowed_workers
from raymill.track.console import RunConsole
from raymill.track.follow import Follower
from raymill.track.state_log import StateLog

POLL_S = 0.2
CAPACITY_CHECK_S = 10.0  # between two looks at the cluster's nodes and free resources
# An autoscaling cluster needs minutes to add a node.
ROOM_S = 600.0
STARTING = "starting workers …"
# Phases of a heartbeat in words; every other one is a part of a training step.
_PHASES = {
    "start": "loading the model and the data",
    "evaluate": "evaluating",
    "commit": "writing a checkpoint",
    "gather": "waiting for rows or answers",
    COMPILE: "compiling",
}

RunStatus = Literal["finished", "stopped", "waiting", "failed"]


@dataclass(frozen=True)
class AttemptEnd:
    """End of an attempt: the status that the workers wrote last, or the error that ended them."""

    status: str | None
    error: BaseException | None
    step: int
    notes: Mapping[int, FailureNote] = field(default_factory=dict)  # of ranks that failed


class RunSupervisor:
    """Supervisor of one process's attempts at a run, on a Ray that is connected.

    `stop` and `drain` may be called at any time, from a signal handler. `resume_command` is shown where the run
    ends early; `actors` are the resources that the job takes besides the workers.
    """

    def __init__(
        self,
        resolved: ResolvedRun,
        lease: Lease,
        console: RunConsole,
        history: StateLog,
        resume_command: str,
        actors: ActorResources = NO_ACTORS,
    ) -> None:
        self._resolved = resolved
        self._lease = lease
        self._console = console
        self._history = history
        self._resume_command = resume_command
        self._actors = actors
        self._failures: list[Failure] = []
        # The state in which a user, or the machine's owner, asked the run to end.
        self._ending: RunState | None = None
        self._resizing = False
        self._workers = 0
        # Number of starts of workers; each one fences off the workers of those before.
        self._starts = 0
        # Nodes of the current attempt's workers, and the host of each rank, once they have started.
        self._nodes: set[str] = set()
        self._hosts: dict[int, str] = {}
        self._heartbeats: HeartbeatReaders | None = None
        self._watchdog: Watchdog | None = None
        self._next_look = 0.0
        self._step_s: deque[float] = deque(maxlen=50)

    def stop(self) -> None:
        """Commit and stop, at the user's request."""
        self._end(RunState.COMMITTING)

    def drain(self) -> None:
        """Commit and stop, at the request of the machine's owner, who doesn't wait for long."""
        self._end(RunState.DRAINING)

    @property
    def drained(self) -> bool:
        return self._ending is RunState.DRAINING

    @property
    def _moving(self) -> bool:
        """Tell whether the workers were asked to end only to restart in another number."""
        return self._resizing and self._ending is None

    @property
    def _winding_up(self) -> bool:
        """Tell whether the workers were asked to end, for good or to restart in another number."""
        return self._resizing or self._ending is not None

    def _end(self, state: RunState) -> None:
        # A drained run exits with a code of its own, whatever the user asks later.
        if not self.drained:
            self._ending = state
        self._resolved.stop_request.touch()

    def run(self) -> RunStatus:
        """Run to completion. Return "finished", "stopped", "waiting" or "failed".

        A run that was asked to stop is "stopped" after a checkpoint. Where it could no longer commit one, it
        was "waiting" for free resources, or its last attempt "failed".

        Raises:
            RaymillError: it can't continue; the committed checkpoints stay.
        """
        before_start: RunStatus = "waiting"
        while True:
            self._resizing = False
            self._resolved.stop_request.unlink(missing_ok=True)
            self._workers = self._wait_for_room()
            # A signal may have come between the deletion of the request and here, so this is asked again.
            if self._ending is not None:
                return before_start
            self._history.enter(RunState.STARTING, workers=self._workers)
            end = self._attempt()
            before_start = "waiting"
            if end.status == "rewind":
                continue
            if end.status == "finished":
                return "finished"
            if end.status == "stopped":
                if self._moving:
                    continue
                return "stopped"
            if not self._recover(end):
                return "failed"
            before_start = "failed"

    def _wait_for_room(self) -> int:
        """Wait until the cluster has room for a number of workers that the batch allows; return the largest."""
        allowed = allowed_workers(self._resolved.job)
        cluster = self._resolved.job.cluster
        deadline = time.monotonic() + ROOM_S
        announced = False
        with ExitStack() as waiting:
            while self._ending is None:
                # Waiting may take minutes, in which another process can take the run over.
                self._lease.check()
                room = worker_capacity(cluster, self._actors, self._resolved.worker_bytes)
                size = largest_fit(allowed, room)
                if size is not None:
                    return size
                wanted = (
                    f"one of {', '.join(map(str, allowed))}" if allowed[1:] else f"{allowed[0]}"
                )
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"the cluster had room for {room} workers for {ROOM_S:.0f} s, and the run takes "
                        f"{wanted}{self._memory_each()}; what was committed stays, and the same command "
                        f"resumes:\n"
                        f"  {self._resume_command}"
                    )
                if not announced:
                    self._console.say(
                        f"waiting: the cluster has room for {room} workers, the run takes {wanted} …"
                    )
                    # An autoscaler adds nodes only for requests that it sees.
                    waiting.enter_context(requesting_capacity(allowed[0], cluster))
                    announced = True
                time.sleep(POLL_S * 5)
        return 0

    def _memory_each(self) -> str:
        needed = self._resolved.worker_bytes
        return f", of about {needed / 2**30:.1f} GiB of host memory each" if needed else ""

    def _attempt(self) -> AttemptEnd:
        """Start workers, and show the run's events until they have ended."""
        resolved = self._resolved
        self._console.waiting(STARTING)
        self._nodes.clear()
        self._hosts.clear()
        self._step_s.clear()
        # Only the notes of this process's previous start are deleted: those of another process, which
        # may hold the run by now, aren't ours.
        shutil.rmtree(replace(resolved, start=self._starts).pulses, ignore_errors=True)
        self._starts += 1
        # Events that workers of an earlier attempt still write, should any live, are ignored from here on.
        follower = Follower.at_end(resolved.event_log)
        resolved = replace(resolved, start=self._starts)
        with closing(HeartbeatReaders(resolved.start_name)) as self._heartbeats:
            self._watch_from_now()
            workers = WorkerRun(resolved, self._workers)
            last, step = self._follow(workers, follower)
        if last.get("status") == "failed":
            error = as_raised(last["error_type"], last["error"])
            if not self._moving or last["error_type"] != CheckpointError.__name__:
                raise error
            # The checkpoint before a change of size couldn't be committed, but nobody asked the run to end:
            # it continues from the checkpoint before.
            return AttemptEnd("failed", error, step)
        if last.get("status") == "rewind":
            self._console.say(f"warning: {last['why']}")
            self._history.enter(RunState.RECOVERING, cause="rewind", what=last["why"], step=step)
        notes = read_notes(resolved.pulses, self._workers)
        return AttemptEnd(last.get("status"), workers.error, step, notes)

    def _follow(self, workers: WorkerRun, follower: Follower) -> tuple[dict[str, Any], int]:
        """Show the run's events until the workers have ended; return the last status and step."""
        next_check = time.monotonic() + CAPACITY_CHECK_S
        last: dict[str, Any] = {}
        step = last_committed(self._resolved.checkpoints)
        while True:
            ended = workers.wait(POLL_S)
            for event in _new_events(follower):
                self._console.show(event)
                step = event["step"] if event["kind"] == "step" else step
                if event["kind"] in ("status", "attempt"):
                    last = event
                self._measure(event)
                self._enter(event)
            if ended:
                return last, step
            self._lease.check()
            self._end_hanging_rank()
            self._console.idle(self._activity())
            if time.monotonic() > next_check and self._nodes and not self._winding_up:
                next_check = time.monotonic() + CAPACITY_CHECK_S
                self._check_capacity()

    def _end_hanging_rank(self) -> None:
        """End a rank that hangs; the others end with it, and the run restarts from its last commit."""
        assert self._watchdog is not None, "the watchdog starts with the attempt"
        assert self._heartbeats is not None, "heartbeats are read from the start of the attempt"
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + self._heartbeats.interval_s
        behind = self._watchdog.look(
            statistics.median(self._step_s) if len(self._step_s) > 2 else None
        )
        if not behind:
            return
        # A new watchdog starts its timers again, should the signal not end the rank.
        self._watch_from_now()
        what = end_one(behind, self._resolved.run_dir / "logs")
        self._console.say(f"warning: {what}")
        self._history.enter(RunState.RECOVERING, what=what)

    def _activity(self) -> str:
        """Return what the workers are doing, for a terminal on which nothing else appears."""
        slowest = self._watchdog.slowest if self._watchdog is not None else None
        if slowest is None:
            return STARTING
        doing = _PHASES.get(slowest.phase, "training")
        return f"step {slowest.step:>6}  {doing} for {slowest.seconds:.0f} s …"

    def _measure(self, event: dict[str, Any]) -> None:
        """Note the nodes of the workers and the seconds of their steps."""
        if event["kind"] == "attempt":
            self._nodes = {rank["node"] for rank in event["ranks"]}
            self._hosts = {number: rank["host"] for number, rank in enumerate(event["ranks"])}
            if self._heartbeats is not None:
                self._heartbeats.follow(self._nodes)
        elif event["kind"] == "step":
            self._step_s.append(event["perf/step_s"])

    def _watch_from_now(self) -> None:
        assert self._heartbeats is not None, "heartbeats are read from the start of the attempt"
        job = self._resolved.job
        self._watchdog = Watchdog(
            self._heartbeats.read,
            self._workers,
            job.watchdog.timeout_s,
            samples=self._resolved.rl is not None,
        )

    def _enter(self, event: dict[str, Any]) -> None:
        if self._winding_up:
            self._history.enter(self._ending or RunState.COMMITTING)
        elif event["kind"] == "attempt":
            self._history.enter(RunState.RUNNING, attempt=event["attempt"], step=event["step"])
        elif event["kind"] == "step" and event["step"] == self._resolved.total_steps:
            self._history.enter(RunState.COMMITTING)

    def _check_capacity(self) -> None:
        """Move the run when nodes that it runs on are drained, or when there is room for more workers."""
        # A drained node still answers, but is removed soon.
        leaving = draining_nodes() & self._nodes
        size = largest_fit(
            allowed_workers(self._resolved.job),
            worker_capacity(self._resolved.job.cluster, self._actors, self._resolved.worker_bytes),
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
            self._console.say(f"{why}: after a checkpoint the run continues with {size}")
            self._resizing = True
            self._resolved.stop_request.touch()

    def _recover(self, end: AttemptEnd) -> bool:
        """Report a failure, and wait before the next start. Return False if the run was asked to end meanwhile.

        Raises:
            ClusterError: `decide_retry` gives up.
            RaymillError: a rank's own, which another attempt would meet again.
        """
        cause, what = diagnose(end.error, end.notes, self._hosts)
        committed = last_committed(self._resolved.checkpoints)
        self._failures.append(Failure(cause, what, end.step, committed))
        facts = {"cause": cause.value, "what": what, "step": end.step, "committed": committed}
        if (final := final_error(end.error, end.notes)) is not None:
            self._history.enter(RunState.FAILED, **facts)
            raise final
        decision = decide_retry(self._failures, self._resolved.job.run.max_failures)
        logs = self._resolved.run_dir / "logs"
        if isinstance(decision, GiveUp):
            advice = memory_advice(self._resolved) if cause is Cause.MEMORY else ""
            self._history.enter(RunState.FAILED, why=decision.why, **facts)
            raise ClusterError(
                f"{decision.why}: {what}{advice}\nTheir output is in {logs}; what was committed stays, and the "
                f"same command resumes:\n  {self._resume_command}"
            ) from end.error
        self._history.enter(RunState.RECOVERING, **facts)
        again = f"; trying again in {decision.pause_s:g} s from step {committed}"
        self._console.say(
            f"warning: after step {end.step}: {what}{again if self._ending is None else ''} "
            f"(output in {logs})"
        )
        until = time.monotonic() + decision.pause_s
        while time.monotonic() < until and self._ending is None:
            time.sleep(POLL_S)
        return self._ending is None


def _new_events(follower: Follower) -> list[dict[str, Any]]:
    """Return the event log's new events; none while it can't be read, since the workers continue meanwhile."""
    try:
        return follower.read()
    except StorageError:
        return []


def last_committed(checkpoints: Path) -> int:
    """Return the newest checkpoint's step; 0 where there is none."""
    steps = committed_steps(checkpoints)
    return steps[-1][0] if steps else 0
