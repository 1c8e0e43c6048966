"""A resolved training job on the driver: run the workers, follow them, finish. The same for every kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from raymill.checkpoint.resume import Found, newest_verified
from raymill.cluster.finish import finish, same_command
from raymill.cluster.interrupt import on_interrupt
from raymill.config import digest, flatten, to_tree
from raymill.config.identity import is_changeable
from raymill.config.schema import TrainJob
from raymill.data.manifest import load_prepared
from raymill.durable import write_atomic
from raymill.engine.assignment import Assignment
from raymill.errors import CheckpointError, ClusterError, ConfigError, RaymillError
from raymill.plan.batch import total_steps
from raymill.track.console import RunConsole
from raymill.track.follow import Follower
from raymill.track.lineage import code_commit

POLL_S = 0.2
STARTING = "starting workers …"


def assignment_of(job: TrainJob, folders: Mapping[Path, float], **resolved: Any) -> Assignment:
    """What the workers are handed: `folders` are prepared data with their weights, `resolved` whatever else
    the job's kind has found out."""
    root = Path(job.storage.root)
    assert job.run.name is not None  # `load` names every run
    return Assignment(
        job=job,
        run_dir=root / "runs" / job.run.name,
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
    from raymill.engine.setup import decide_start

    if not assignment.checkpoints.exists():
        return None
    digests = tuple(load_prepared(folder).manifest.digest for folder in assignment.folders)
    start = decide_start(assignment, digests)
    finished = start.resumed and start.step == assignment.total_steps
    return start.found if finished else None


def complete(assignment: Assignment, found: Found) -> int:
    """Redo what follows training, where it is missing: export, registration, report."""
    from raymill.track.tracker import Tracker

    console = RunConsole(peak_is_measured=False)
    console.say(
        f"run {assignment.job.run.name} is finished at step {assignment.total_steps}; ask for more "
        "train.steps to go on"
    )
    tracker = Tracker(assignment)
    tracker.start()
    try:
        return finish(assignment, found, tracker, console)
    finally:
        tracker.close("finished")


def train(assignment: Assignment) -> int:
    """Run the workers to the end, a stop or a failure, on a Ray that is connected."""
    from raymill.track.tracker import Tracker

    job = assignment.job
    _prepare_run_dir(assignment)
    tracker = Tracker(assignment)
    tracker.start()
    console = RunConsole(peak_is_measured=job.cluster.peak_tflops is None)
    console.say(f"run {job.run.name} → {assignment.run_dir}")
    status = None
    try:
        with console, on_interrupt(lambda: _ask_to_stop(assignment, console)):
            status = _follow(assignment, console)
        if status == "finished":
            found = newest_verified(assignment.checkpoints)
            if found is None:
                raise CheckpointError(f"{assignment.checkpoints} holds no checkpoint to export")
            return finish(assignment, found, tracker, console)
        console.say("stopped after a checkpoint; to go on, run:\n  " + same_command())
        return 0
    finally:
        tracker.close(status or "failed")


def _prepare_run_dir(assignment: Assignment) -> None:
    assignment.run_dir.mkdir(parents=True, exist_ok=True)
    assignment.stop_request.unlink(missing_ok=True)
    text = yaml.safe_dump(to_tree(assignment.job), sort_keys=False)
    write_atomic(assignment.run_dir / "config.yaml", text)


def _ask_to_stop(assignment: Assignment, console: RunConsole) -> None:
    assignment.stop_request.touch()
    console.say(
        "stopping: the step under way is finished and a checkpoint committed "
        "(Ctrl-C again to stop at once)"
    )


def _follow(assignment: Assignment, console: RunConsole) -> str:
    """Show the run's events until the workers have ended; returns "finished" or "stopped".

    Raises:
        RaymillError: the workers failed, in a way that was foreseen or not.
    """
    from raymill.cluster.launch import WorkerRun

    journal = assignment.journal
    follower = Follower(journal, journal.stat().st_size if journal.exists() else 0)
    console.waiting(STARTING)
    workers = WorkerRun(assignment)
    ending: dict[str, str] = {}
    while True:
        ended = workers.wait(POLL_S)
        for event in follower.read():
            console.show(event)
            if event["kind"] == "status":
                ending = event
        if ended:
            break
    if ending.get("status") == "failed":
        raise _as_raised(ending)
    if workers.error is not None or "status" not in ending:
        raise ClusterError(
            f"the workers ended without finishing: {_reason(workers.error)}\n"
            f"Their output is in {assignment.run_dir / 'logs'}; what was committed stays, and the "
            f"same command resumes:\n  {same_command()}"
        ) from workers.error
    return ending["status"]


def _as_raised(ending: dict[str, str]) -> RaymillError:
    """The workers' error as the class it was, so that its exit code is the same."""
    if ending.get("error_type") == "ConfigError":
        return ConfigError([line.split(". ", 1)[-1] for line in ending["error"].splitlines()[1:]])
    return RaymillError(ending["error"])


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "they said nothing"
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
