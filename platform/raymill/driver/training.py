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
from raymill.cluster.session import NO_ACTORS, ActorResources
from raymill.config.entry import EXIT_FAILED, EXIT_PREEMPTED
from raymill.data.store.manifest import load_prepared
from raymill.driver.failure import RunState
from raymill.driver.finish import finish, preempted
from raymill.driver.interrupt import end_preempted, on_interrupt, on_termination
from raymill.driver.supervisor import RunSupervisor, last_committed
from raymill.driver.system_metrics import SystemMetrics
from raymill.durable import write_atomic
from raymill.engine.resolved_run import ResolvedRun
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
from raymill.track.state_log import StateLog


def resolved_run(job: TrainJob, folders: Mapping[Path, float], **resolved: Any) -> ResolvedRun:
    """What the workers are handed: `folders` are prepared data with their weights, `resolved` whatever else
    the job's kind has found out."""
    root = job.storage.folder
    assert job.run.name is not None  # `load` names every run
    return ResolvedRun(
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


def last_checkpoint(resolved: ResolvedRun) -> Found | None:
    """The checkpoint of the last step asked for, if it is committed; then no worker need start.

    Raises:
        ConfigError: the configuration contradicts the run that is there.
        CheckpointError: its checkpoints are all damaged.
    """
    from raymill.engine.start import decide_start

    if not is_folder(resolved.checkpoints):
        return None
    digests = tuple(load_prepared(folder).manifest.digest for folder in resolved.folders)
    start = decide_start(resolved, digests)
    finished = start.resumed and start.step == resolved.total_steps
    return start.found if finished else None


def complete(resolved: ResolvedRun, found: Found) -> int:
    """Redo what follows training, where it is missing: export, registration, report."""
    from raymill.track.tracker import Tracker

    console = RunConsole(peak_is_measured=False)
    more = going_on(resolved)
    advice = "" if more is None else f"; to go on, add to its command: {more}"
    console.say(f"run {resolved.job.run.name} is finished at step {resolved.total_steps}{advice}")
    tracker = Tracker(resolved)
    tracker.start()
    try:
        code = finish(resolved, found, tracker, console)
        if code == 0:
            StateLog(resolved.run_dir, resolved.token).enter(RunState.FINISHED)
        upload_results(resolved, resolved.remote)
        return code
    finally:
        tracker.close("finished")


@contextmanager
def acquire_run(resolved: ResolvedRun) -> Iterator[tuple[ResolvedRun, Lease]]:
    """Be the run's one writer within the block.

    Raises:
        RunHeldError: another process is.
    """
    with on_termination(partial(end_preempted, preempted())):
        lease = acquire(resolved.run_dir, _say, resolved.uri)
        try:
            ours = replace(resolved, token=lease.token)
            download_run(ours)
            yield ours, lease
        finally:
            lease.release()


def _say(text: str) -> None:
    print(text, flush=True)


def download_run(resolved: ResolvedRun) -> None:
    """Have here what the object store has of the run, and of the one that it forks."""
    remote, fork = resolved.remote, resolved.job.run.from_
    if remote is None:
        return
    remote.pull(resolved.run_dir, _say)
    clamp_offset(resolved.run_dir, resolved.event_log)
    if fork is not None and not committed_steps(resolved.checkpoints):
        name, step = parse_fork(fork)
        other = RemoteRun(f"{resolved.job.storage.uri}/runs/{name}")
        other.pull_step(resolved.runs / name, step, _say)


def upload_results(resolved: ResolvedRun, remote: RemoteRun | None) -> None:
    """Have in the object store what a finished run leaves.

    Raises:
        StorageError: it can't be uploaded; says that the same command does it.
    """
    if remote is None:
        return
    try:
        remote.keep_results(resolved.run_dir, MARKER_NAME)
        remote.keep(resolved.run_dir)
    except (OSError, StorageError) as error:
        raise StorageError(
            f"the run is finished and in {resolved.run_dir}, but not all of it in the object store: {error}\n"
            "The same command uploads it."
        ) from error
    _say(f"uploaded {resolved.run_dir} → {resolved.uri}")


def train(resolved: ResolvedRun, lease: Lease, beside: ActorResources = NO_ACTORS) -> int:
    """Run the workers to the end, a stop or a failure, on a Ray that is connected; returns the exit code."""
    from raymill.track.tracker import Tracker

    job, remote = resolved.job, resolved.remote
    _prepare_run_dir(resolved)
    readings = SystemMetrics(resolved)
    tracker = Tracker(resolved, readings)
    tracker.start()
    console = RunConsole(peak_is_measured=job.cluster.peak_tflops is None)
    console.say(f"run {job.run.name} → {resolved.run_dir}")
    for text in rounding_warnings(job.data.mixture):
        console.say(f"warning: {text}")
    history = StateLog(resolved.run_dir, lease.token)
    attempts = RunSupervisor(resolved, lease, console, history, typed_command(), beside)
    ended = RunState.FAILED
    with on_termination(lambda: console.say("the run has ended; what follows it is completed")):
        try:
            with console, _signals(attempts, console):
                status = attempts.run()
            if status == "finished":
                found = newest_verified(resolved.checkpoints)
                if found is None:
                    raise CheckpointError(f"{resolved.checkpoints} holds no checkpoint to export")
                if found.manifest.step != resolved.total_steps:
                    raise CheckpointError(
                        f"the checkpoint of the last step can't be exported: {'; '.join(found.passed_over)}\n"
                        "The same command makes it again from the one before."
                    )
                lease.check()
                code = finish(resolved, found, tracker, console)
                ended = RunState.FINISHED
                upload_results(resolved, remote)
                return code
            ended = RunState.STOPPED
            if status != "stopped" or not attempts.drained:
                console.say(_how_it_stopped(status, resolved.checkpoints))
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
                    remote.keep(resolved.run_dir)


def _how_it_stopped(status: str, checkpoints: Path) -> str:
    step = last_committed(checkpoints)
    if status == "stopped":
        return "stopped after a checkpoint" if step else "stopped before the first step"
    if status == "waiting":
        return "stopped while waiting for room; nothing was lost"
    since = f"the checkpoint of step {step}" if step else "its beginning"
    return f"stopped by a failure, before it could commit: what it made since {since} is made again"


@contextmanager
def _signals(attempts: RunSupervisor, console: RunConsole) -> Iterator[None]:
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


def _prepare_run_dir(resolved: ResolvedRun) -> None:
    for path in entries(resolved.run_dir):
        if path.name.startswith("stop-requested"):
            path.unlink(missing_ok=True)
    text = yaml.safe_dump(to_tree(resolved.job), sort_keys=False)
    write_atomic(resolved.run_dir / "config.yaml", text)
