"""`jobs/pretrain.py` on the driver: resolve what was asked, run the workers, follow them, finish."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from raymill.checkpoint.resume import Found, newest_verified
from raymill.cluster.finish import finish, same_command
from raymill.cluster.interrupt import on_interrupt
from raymill.cluster.session import connect
from raymill.config import digest, flatten, to_tree
from raymill.config.identity import is_changeable
from raymill.config.schema import PretrainJob
from raymill.data.location import prepared_folder
from raymill.data.manifest import MANIFEST_NAME, Prepared, load_prepared
from raymill.durable import write_atomic
from raymill.engine.assignment import Assignment
from raymill.errors import CheckpointError, ClusterError, ConfigError, DataError, RaymillError
from raymill.plan.batch import total_steps
from raymill.track.console import RunConsole
from raymill.track.follow import Follower
from raymill.track.lineage import code_commit

POLL_S = 0.2
STARTING = "starting workers …"


def run(job: PretrainJob) -> int:
    """Pretrain as `job` says; returns the process's exit code.

    Raises:
        RaymillError: with a message for the user; what was committed stays.
    """
    if job.dry_run:
        from raymill.plan.report import print_plan

        print_plan(job)
        return 0
    assignment = resolve(job)
    last = last_checkpoint(assignment)
    if last is not None:
        return complete(assignment, last)
    with connect(job.cluster, job.run.workers):
        return train(assignment)


def prepared_folders(job: PretrainJob) -> dict[Path, float]:
    """Prepared folder → weight: this configuration's own data, or the mixture's."""
    root = Path(job.storage.root)
    if not job.data.mixture:
        return {prepared_folder(job.data, job.tokenizer, job.run.seed, root).absolute(): 1.0}
    return {
        (root / "data" / name if not Path(name).is_absolute() else Path(name)): weight
        for name, weight in job.data.mixture.items()
    }


def resolve(job: PretrainJob) -> Assignment:
    """Find and cross-check everything the run needs, before Ray starts.

    Raises:
        DataError: the data isn't prepared, or doesn't go together.
        ConfigError: the model and the data don't fit.
    """
    folders = prepared_folders(job)
    prepared = [_open_prepared(folder, job) for folder in folders]
    _check_together(prepared, job)
    root = Path(job.storage.root)
    assert job.run.name is not None  # `load` names every run
    model_folder, parent = _resolve_model(job)
    if job.run.from_ is not None:
        parent = f"run:{job.run.from_}"
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
        model_folder=model_folder,
        parent=parent,
    )


def _resolve_model(job: PretrainJob) -> tuple[Path | None, str | None]:
    if job.model is None:
        return None, None
    from raymill.track.registry import resolve_model

    found = resolve_model(job.model, job.tracking, Path(job.storage.root))
    return found.folder, found.name


def _open_prepared(folder: Path, job: PretrainJob) -> Prepared:
    if not (folder / MANIFEST_NAME).exists():
        arguments = " ".join(a for a in sys.argv[1:] if not a.startswith("stages"))
        raise DataError(
            f"there is no prepared data in {folder}. Prepare it first, with the same overrides:\n"
            f"  python jobs/prepare.py {arguments}".rstrip()
        )
    return load_prepared(folder)


def _check_together(prepared: list[Prepared], job: PretrainJob) -> None:
    first = prepared[0].manifest
    problems = []
    for data in prepared[1:]:
        if data.manifest.tokenizer != first.tokenizer:
            problems.append(
                f"data.mixture: {data.folder} was prepared with another tokenizer than "
                f"{prepared[0].folder}; prepare both with the same tokenizer.path"
            )
    for data in prepared:
        if data.manifest.sequence_length != job.data.sequence_length:
            problems.append(
                f"data.sequence_length={job.data.sequence_length}: {data.folder} was prepared with "
                f"{data.manifest.sequence_length}"
            )
    vocabulary = job.arch.vocab_size
    if vocabulary is not None and vocabulary < first.tokenizer.vocab_size:
        problems.append(
            f"arch.vocab_size={vocabulary}: the data's tokenizer has {first.tokenizer.vocab_size}; "
            "set arch.vocab_size=null to take the tokenizer's"
        )
    if problems:
        raise ConfigError(problems)


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
