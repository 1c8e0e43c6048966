"""A resolved training job on the driver: run the workers, follow them, finish. The same for every kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from raymill.checkpoint.lease import Lease, acquire
from raymill.checkpoint.remote import RemoteRun
from raymill.checkpoint.resume import Found, newest_verified, parse_fork
from raymill.checkpoint.retention import committed_steps
from raymill.cluster.session import NOTHING, Beside
from raymill.config.entry import EXIT_FAILED, EXIT_PREEMPTED
from raymill.data.store.manifest import load_prepared
from raymill.driver.failure import RunState
from raymill.driver.finish import finish, preempted
from raymill.driver.interrupt import end_preempted, on_interrupt, on_termination
from raymill.driver.supervisor import Attempts, last_committed
from raymill.driver.system_metrics import ClusterReadings
from raymill.durable import write_atomic
from raymill.engine.resolved_run import Assignment
from raymill.engine.start import going_on
from raymill.errors import CheckpointError, StorageError
from raymill.plan.batch import total_steps
from raymill.plan.mixture import rounding_warnings
from raymill.reading import entries, is_folder
from raymill.redaction import typed_command
from raymill.schema.identity import is_changeable
from raymill.schema.jobs import TrainJob
from raymill.schema.tree import digest, flatten, to_tree
from raymill.track.console import RunConsole
from raymill.track.forwarder import clamp_offset
from raymill.track.lineage import code_commit
from raymill.track.marker import MARKER_NAME
from raymill.track.state_log import History


def assignment_of(job: TrainJob, folders: Mapping[Path, float], **resolved: Any) -> Assignment:
    """What the workers are handed: `folders` are prepared data with their weights, `resolved` whatever else
    the job's kind has found out."""
    root = job.storage.folder
    assert job.run.name is not None  # `load` names every run
    return Assignment(
        job=job,
        run_dir=root / "runs" / job.run.name,
        uri=None if job.storage.uri is None else f"{job.storage.uri}/runs/{job.run.name}",
        runs=root / "runs",
        folders=tuple(folders),
        weights=tuple(folders.values()),
        total_steps=total_steps(job),
        config=flatten(job),
        config_digest=digest(job, ignore=is_changeable),
        code_commit=code_commit(),
        **resolved,
    )


def last_checkpoint(assignment: Assignment) -> Found | None:
    """The checkpoint of the last step asked for, if it is committed; then no worker need start.

    Raises:
        ConfigError: the configuration contradicts the run that is there.
        CheckpointError: its checkpoints are all damaged.
    """
    from raymill.engine.start import decide_start

    if not is_folder(assignment.checkpoints):
        return None
    digests = tuple(load_prepared(folder).manifest.digest for folder in assignment.folders)
    start = decide_start(assignment, digests)
    finished = start.resumed and start.step == assignment.total_steps
    return start.found if finished else None


def complete(assignment: Assignment, found: Found) -> int:
    """Redo what follows training, where it is missing: export, registration, report."""
    from raymill.track.tracker import Tracker

    console = RunConsole(peak_is_measured=False)
    more = going_on(assignment)
    advice = "" if more is None else f"; to go on, add to its command: {more}"
    console.say(
        f"run {assignment.job.run.name} is finished at step {assignment.total_steps}{advice}"
    )
    tracker = Tracker(assignment)
    tracker.start()
    try:
        code = finish(assignment, found, tracker, console)
        if code == 0:
            History(assignment.run_dir, assignment.token).enter(RunState.FINISHED)
        _keep(assignment, assignment.remote)
        return code
    finally:
        tracker.close("finished")


@contextmanager
def held(assignment: Assignment) -> Iterator[tuple[Assignment, Lease]]:
    """Be the run's one writer within the block.

    Raises:
        RunHeldError: another process is.
    """
    with on_termination(partial(end_preempted, preempted())):
        lease = acquire(assignment.run_dir, _say, assignment.uri)
        try:
            ours = replace(assignment, token=lease.token)
            _pull(ours)
            yield ours, lease
        finally:
            lease.release()


def _say(text: str) -> None:
    print(text, flush=True)


def _pull(assignment: Assignment) -> None:
    """Have here what the object store has of the run, and of the one that it forks."""
    remote, fork = assignment.remote, assignment.job.run.from_
    if remote is None:
        return
    remote.pull(assignment.run_dir, _say)
    clamp_offset(assignment.run_dir, assignment.journal)
    if fork is not None and not committed_steps(assignment.checkpoints):
        name, step = parse_fork(fork)
        other = RemoteRun(f"{assignment.job.storage.uri}/runs/{name}")
        other.pull_step(assignment.runs / name, step, _say)


def _keep(assignment: Assignment, remote: RemoteRun | None) -> None:
    """Have in the object store what a finished run leaves.

    Raises:
        StorageError: it can't be uploaded; says that the same command does it.
    """
    if remote is None:
        return
    try:
        remote.keep_results(assignment.run_dir, MARKER_NAME)
        remote.keep(assignment.run_dir)
    except (OSError, StorageError) as error:
        raise StorageError(
            f"the run is finished and in {assignment.run_dir}, but not all of it in the object store: {error}\n"
            "The same command uploads it."
        ) from error
    _say(f"uploaded {assignment.run_dir} → {assignment.uri}")


def train(assignment: Assignment, lease: Lease, beside: Beside = NOTHING) -> int:
    """Run the workers to the end, a stop or a failure, on a Ray that is connected; returns the exit code."""
    from raymill.track.tracker import Tracker

    job, remote = assignment.job, assignment.remote
    _prepare_run_dir(assignment)
    readings = ClusterReadings(assignment)
    tracker = Tracker(assignment, readings)
    tracker.start()
    console = RunConsole(peak_is_measured=job.cluster.peak_tflops is None)
    console.say(f"run {job.run.name} → {assignment.run_dir}")
    for text in rounding_warnings(job.data.mixture):
        console.say(f"warning: {text}")
    history = History(assignment.run_dir, lease.token)
    attempts = Attempts(assignment, lease, console, history, typed_command(), beside)
    ended = RunState.FAILED
    with on_termination(lambda: console.say("the run has ended; what follows it is completed")):
        try:
            with console, _signals(attempts, console):
                status = attempts.run()
            if status == "finished":
                found = newest_verified(assignment.checkpoints)
                if found is None:
                    raise CheckpointError(f"{assignment.checkpoints} holds no checkpoint to export")
                if found.manifest.step != assignment.total_steps:
                    raise CheckpointError(
                        f"the checkpoint of the last step can't be exported: {'; '.join(found.passed_over)}\n"
                        "The same command makes it again from the one before."
                    )
                lease.check()
                code = finish(assignment, found, tracker, console)
                ended = RunState.FINISHED
                _keep(assignment, remote)
                return code
            ended = RunState.STOPPED
            if status != "stopped" or not attempts.drained:
                console.say(_how_it_stopped(status, assignment.checkpoints))
            if attempts.drained:
                console.say(preempted())
                return EXIT_PREEMPTED
            console.say(f"to go on, run:\n  {typed_command()}")
            return EXIT_FAILED if status == "broken off" else 0
        except KeyboardInterrupt:
            if ended is not RunState.FINISHED:
                ended = RunState.STOPPED
            raise
        finally:
            history.enter(ended)
            tracker.close(ended.value)
            readings.close()
            if remote is not None:
                # What matters of it was kept with the last checkpoint.
                with suppress(OSError, StorageError):
                    remote.keep(assignment.run_dir)


def _how_it_stopped(status: str, checkpoints: Path) -> str:
    step = last_committed(checkpoints)
    if status == "stopped":
        return "stopped after a checkpoint" if step else "stopped before the first step"
    if status == "waiting":
        return "stopped while waiting for room; nothing was lost"
    since = f"the checkpoint of step {step}" if step else "its beginning"
    return f"stopped by a failure, before it could commit: what it made since {since} is made again"


@contextmanager
def _signals(attempts: Attempts, console: RunConsole) -> Iterator[None]:
    """Ctrl-C, and SIGTERM, have the workers commit and end."""
    under_way = "stopping: the step under way is finished and a checkpoint committed"

    def interrupted() -> None:
        attempts.stop()
        console.say(f"{under_way} (Ctrl-C again to stop at once)")

    def terminated() -> None:
        attempts.drain()
        console.say(under_way)

    with on_interrupt(interrupted), on_termination(terminated):
        yield


def _prepare_run_dir(assignment: Assignment) -> None:
    for path in entries(assignment.run_dir):
        if path.name.startswith("stop-requested"):
            path.unlink(missing_ok=True)
    text = yaml.safe_dump(to_tree(assignment.job), sort_keys=False)
    write_atomic(assignment.run_dir / "config.yaml", text)
