"""A run from its lease to its end on the driver, the same for every job that trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from raymill.checkpoint.file_record import DamagedError
from raymill.checkpoint.lease import Lease, acquire
from raymill.checkpoint.remote import RemoteRun
from raymill.checkpoint.resume import (
    VerifiedCheckpoint,
    newest_verified,
    set_damaged_aside,
)
from raymill.checkpoint.retention import committed_steps
from raymill.cluster.session import NO_ACTORS, ActorResources
from raymill.config.entry import EXIT_FAILED, EXIT_PREEMPTED
from raymill.data.store.manifest import load_prepared
from raymill.driver.failure import RunState
from raymill.driver.finish import finish_run
from raymill.driver.interrupt import (
    end_preempted,
    on_interrupt,
    on_termination,
    preemption_message,
)
from raymill.driver.supervisor import RunStatus, RunSupervisor, last_committed
from raymill.driver.system_metrics import SystemMetrics
from raymill.durable import write_atomic
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.start import extension_overrides
from raymill.errors import CheckpointError, StorageError
from raymill.reading import entries, is_folder
from raymill.redaction import typed_command
from raymill.schema.tree import to_tree
from raymill.track.console import RunConsole
from raymill.track.forwarder import clamp_offset
from raymill.track.marker import MARKER_NAME
from raymill.track.state_log import StateLog

if TYPE_CHECKING:
    from raymill.track.tracker import Tracker


@contextmanager
def acquire_run(resolved: ResolvedRun) -> Iterator[tuple[ResolvedRun, Lease]]:
    """Be the run's only writer within the block, with its newest state on this machine.

    Raises:
        RunHeldError: another process writes the run.
    """
    with on_termination(partial(end_preempted, preemption_message())):
        # Another live process's lease is refused; that of a dead one is taken over.
        lease = acquire(resolved.run_dir, _say, resolved.uri)
        try:
            leased = replace(resolved, token=lease.token)
            # Only now, since the process before may have uploaded until its lease ended.
            download_run(leased)
            yield leased, lease
        finally:
            lease.release()


def _say(text: str) -> None:
    print(text, flush=True)


def download_run(resolved: ResolvedRun) -> None:
    """Fetch the run's files from the object store; its checkpoints are read where they are needed."""
    remote = resolved.remote
    if remote is None:
        return
    remote.download(resolved.run_dir, _say)
    # The downloaded event log may be shorter than the part that was already sent to MLflow.
    clamp_offset(resolved.run_dir, resolved.event_log)
    local = {step for step, _ in committed_steps(resolved.checkpoints)}
    newest = remote.steps()[-1:]
    if newest and newest[0] not in local:
        _say(f"the checkpoint of step {newest[0]} is read from {remote.uri}")


def finished_checkpoint(resolved: ResolvedRun) -> VerifiedCheckpoint | None:
    """Return the last step's checkpoint if it is committed, so that no worker needs to start.

    Raises:
        ConfigError: the configuration contradicts that of the stored run.
        CheckpointError: all checkpoints are damaged.
    """
    from raymill.engine.start import resolve_start

    if resolved.remote is None and not is_folder(resolved.checkpoints):
        return None
    # The same checks as at a resume, so that a contradicting configuration isn't reported as finished.
    digests = tuple(load_prepared(folder).manifest.digest for folder in resolved.folders)
    start = resolve_start(resolved, digests)
    finished = start.resumed and start.step == resolved.total_steps
    return start.checkpoint if finished else None


def finish_again(resolved: ResolvedRun, checkpoint: VerifiedCheckpoint) -> int:
    """Export, register and report a run that is already trained, where that is missing. Return 0."""
    from raymill.track.tracker import Tracker

    console = RunConsole(peak_is_measured=False)
    more = extension_overrides(resolved)
    advice = "" if more is None else f"; to continue it, add to its command: {more}"
    console.say(f"run {resolved.job.run.name} is finished at step {resolved.total_steps}{advice}")
    tracker = Tracker(resolved)
    tracker.start()
    try:
        with _remade_if_damaged(resolved, checkpoint):
            finish_run(resolved, checkpoint, tracker, console)
        StateLog(resolved.run_dir, resolved.token).enter(RunState.FINISHED)
        upload_results(resolved, resolved.remote)
        return 0
    finally:
        tracker.close("finished")


@contextmanager
def _remade_if_damaged(resolved: ResolvedRun, checkpoint: VerifiedCheckpoint) -> Iterator[None]:
    """Set the checkpoint aside if the block finds damage in it; only the holder of the run may.

    Raises:
        CheckpointError: it is damaged; says that the same command makes it again, where it can.
    """
    try:
        yield
    except DamagedError as error:
        if error.location != checkpoint.location:
            raise
        set_damaged_aside(checkpoint, error, resolved.remote)
        raise _will_be_remade(str(error)) from error


def _will_be_remade(reason: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint of the last step can't be exported: {reason}\n"
        "The same command makes it again from the one before."
    )


def upload_results(resolved: ResolvedRun, remote: RemoteRun | None) -> None:
    """Upload a finished run's export, summary and report to the object store.

    Raises:
        StorageError: the upload failed; says that the same command repeats it.
    """
    if remote is None:
        return
    try:
        remote.upload_results(resolved.run_dir, MARKER_NAME)
        remote.upload_files(resolved.run_dir)
    except (OSError, StorageError) as error:
        raise StorageError(
            f"the run is finished and in {resolved.run_dir}, but not all of it in the object store: {error}\n"
            "The same command uploads it."
        ) from error
    _say(f"uploaded {resolved.run_dir} → {resolved.uri}")


@dataclass
class TrainingSession:
    """Training and its end, within the logs that `training_session` opens."""

    resolved: ResolvedRun
    lease: Lease
    console: RunConsole
    tracker: Tracker
    supervisor: RunSupervisor
    state: RunState = RunState.FAILED  # in which the run is left

    def train(self) -> RunStatus:
        """Run the workers until training is complete, stopped or fails; see `RunSupervisor.run`."""
        with self.console, _signals(self.supervisor, self.console):
            return self.supervisor.run()

    def finish(self, status: RunStatus) -> int:
        """Export, register and report a finished run; say how to continue any other. Return the exit code.

        Raises:
            CheckpointError: the last step's checkpoint is damaged.
        """
        if status != "finished":
            return self._stopped(status)
        resolved = self.resolved
        checkpoint = newest_verified(resolved.checkpoints, remote=resolved.remote)
        if checkpoint is None:
            raise CheckpointError(f"{resolved.checkpoints} holds no checkpoint to export")
        if checkpoint.manifest.step != resolved.total_steps:
            raise _will_be_remade("; ".join(checkpoint.passed_over))
        # A process that has lost the run must not register a model of it.
        self.lease.check()
        with _remade_if_damaged(resolved, checkpoint):
            finish_run(resolved, checkpoint, self.tracker, self.console)
        # The run is finished even if the upload fails, which the same command repeats.
        self.state = RunState.FINISHED
        upload_results(resolved, resolved.remote)
        return 0

    def _stopped(self, status: RunStatus) -> int:
        self.state = RunState.STOPPED
        console, preempted = self.console, self.supervisor.drained
        if status != "stopped" or not preempted:
            console.say(_how_it_stopped(status, self.resolved.checkpoints))
        if preempted:
            console.say(preemption_message())
            return EXIT_PREEMPTED
        console.say(f"to continue, run:\n  {typed_command()}")
        return EXIT_FAILED if status == "failed" else 0


@contextmanager
def training_session(
    resolved: ResolvedRun, lease: Lease, actors: ActorResources = NO_ACTORS
) -> Iterator[TrainingSession]:
    """Open a run's logs for a block that trains and finishes it, on a Ray that is connected.

    However the block ends, its end is in the state log, in MLflow and in the object store.
    """
    from raymill.track.tracker import Tracker

    job, remote = resolved.job, resolved.remote
    # The tracker connects to MLflow in the background, while the workers start.
    _prepare_run_dir(resolved)
    readings = SystemMetrics(resolved)
    tracker = Tracker(resolved, readings)
    tracker.start()
    console = RunConsole(peak_is_measured=job.cluster.peak_tflops is None)
    console.say(f"run {job.run.name} → {resolved.run_dir}")
    history = StateLog(resolved.run_dir, lease.token)
    supervisor = RunSupervisor(resolved, lease, console, history, typed_command(), actors)
    session = TrainingSession(resolved, lease, console, tracker, supervisor)
    with on_termination(lambda: console.say("the run has ended; what follows it is completed")):
        try:
            yield session
        except KeyboardInterrupt:
            if session.state is not RunState.FINISHED:
                session.state = RunState.STOPPED
            raise
        finally:
            history.enter(session.state)
            tracker.close(session.state.value)
            readings.close()
            if remote is not None:
                # Checkpoints and results are uploaded by now; the last lines of the logs may be lost.
                with suppress(OSError, StorageError):
                    remote.upload_files(resolved.run_dir)


def _prepare_run_dir(resolved: ResolvedRun) -> None:
    for path in entries(resolved.run_dir):
        # A request that an earlier process left would stop this run at its first step.
        if path.name.startswith("stop-requested"):
            path.unlink(missing_ok=True)
    text = yaml.safe_dump(to_tree(resolved.job), sort_keys=False)
    write_atomic(resolved.run_dir / "config.yaml", text)


def _how_it_stopped(status: RunStatus, checkpoints: Path) -> str:
    step = last_committed(checkpoints)
    if status == "stopped":
        return "stopped after a checkpoint" if step else "stopped before the first step"
    if status == "waiting":
        return "stopped while waiting for free resources; nothing was lost"
    since = f"from step {step}" if step else "from the beginning"
    return f"stopped by a failure, before a checkpoint could be committed: work is repeated {since}"


@contextmanager
def _signals(supervisor: RunSupervisor, console: RunConsole) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM make the workers commit and end."""
    stopping = "stopping: the step under way is finished and a checkpoint committed"

    def interrupted() -> None:
        supervisor.stop()
        console.say(f"{stopping} (Ctrl-C again to stop at once)")

    def terminated() -> None:
        supervisor.drain()
        console.say(stopping)

    with on_interrupt(interrupted), on_termination(terminated):
        yield
