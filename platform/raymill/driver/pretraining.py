"""`jobs/pretrain.py` on the driver: resolve what was asked, run the workers, follow them, finish."""

from __future__ import annotations

import sys
from pathlib import Path

from raymill.cluster.session import connect, warm_up
from raymill.data.store.location import prepared_folder
from raymill.data.store.manifest import MANIFEST_NAME, Prepared, is_finished, load_prepared
from raymill.driver.preparation import fetched_mixture
from raymill.driver.training import acquire_run, complete, last_checkpoint, resolved_run, train
from raymill.engine.resolved_run import ResolvedRun
from raymill.errors import ConfigError, DataError
from raymill.plan.report import memory_plan
from raymill.redaction import job_command
from raymill.schema.jobs import PretrainJob
from raymill.storage.mirror import fetch
from raymill.track.marker import weights_digest


def run(job: PretrainJob) -> int:
    """Pretrain as `job` says; returns the process's exit code.

    Raises:
        RaymillError: with a message for the user; what was committed stays.
    """
    if job.dry_run:
        from raymill.plan.report import pretraining_plan, print_plan

        print_plan(pretraining_plan(job))
        return 0
    warm_up(job.cluster)
    with acquire_run(resolve(job)) as (resolved, lease):
        last = last_checkpoint(resolved)
        if last is not None:
            return complete(resolved, last)
        with connect(job.cluster, job.run):
            return train(resolved, lease)


def prepared_folders(job: PretrainJob) -> dict[Path, float]:
    """Prepared folder → weight: this configuration's own data, or the mixture's."""
    if job.data.mixture:
        return fetched_mixture(job.data, job.storage)
    folder = prepared_folder(job.data, job.tokenizer, job.run.seed, job.storage.folder).absolute()
    fetch(job.storage, folder, MANIFEST_NAME)
    return {folder: 1.0}


def resolve(job: PretrainJob) -> ResolvedRun:
    """Find and cross-check everything the run needs, before Ray starts.

    Raises:
        DataError: the data isn't prepared, or doesn't go together.
        ConfigError: the model and the data don't fit.
    """
    folders = prepared_folders(job)
    prepared = [_open_prepared(folder, job) for folder in folders]
    _check_together(prepared, job)
    model_folder, parent = _resolve_model(job)
    parent_digest = None if model_folder is None else weights_digest(model_folder)
    if job.run.from_ is not None:
        parent, parent_digest = f"run:{job.run.from_}", None
    return resolved_run(
        job,
        folders,
        model_folder=model_folder,
        parent=parent,
        parent_digest=parent_digest,
        memory_plan=memory_plan(job, job.arch, prepared[0].manifest.tokenizer.vocab_size),
    )


def _resolve_model(job: PretrainJob) -> tuple[Path | None, str | None]:
    if job.model is None:
        return None, None
    from raymill.track.registry import resolve_model

    found = resolve_model(job.model, job.tracking, job.storage.folder)
    return found.folder, found.name


def _open_prepared(folder: Path, job: PretrainJob) -> Prepared:
    if not is_finished(folder):
        typed = [argument for argument in sys.argv[1:] if not argument.startswith("stages")]
        raise DataError(
            f"there is no prepared data in {folder}. Prepare it first, with the same overrides:\n"
            f"  {job_command('prepare', *typed)}"
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
        if data.manifest.kind != "text":
            problems.append(
                f"data.mixture: {data.folder} holds {data.manifest.kind}, not text; that is for "
                "jobs/sft.py"
            )
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
