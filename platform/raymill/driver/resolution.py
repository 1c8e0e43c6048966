"""Resolve a job into a `ResolvedRun`: the part that all jobs share, and pretraining."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from raymill.cluster.capacity import machine_memory
from raymill.config.memory_check import memory_problems
from raymill.data.store.location import prepared_folder
from raymill.data.store.manifest import MANIFEST_NAME, PreparedData, is_finished, load_for_training
from raymill.driver.preparation import fetched_mixture
from raymill.engine.resolved_run import ResolvedRl, ResolvedRun
from raymill.engine.start import order_of
from raymill.errors import ConfigError, DataError
from raymill.plan.batch import allowed_workers, total_steps
from raymill.plan.node import node_memory
from raymill.plan.report import GIB, memory_plan
from raymill.redaction import job_command
from raymill.schema.identity import is_changeable
from raymill.schema.jobs import PretrainJob, TrainJob
from raymill.schema.sections import ArchConfig
from raymill.schema.tree import digest, flatten
from raymill.storage.mirror import download_folder
from raymill.track.lineage import code_commit
from raymill.track.marker import weights_digest
from raymill.track.registry import resolve_model


def resolved_run(
    job: TrainJob,
    folders: Mapping[Path, float],
    *,
    model_folder: Path | None = None,
    parent: str | None = None,
    parent_digest: str | None = None,
    memory_plan: str = "",
    worker_bytes: float = 0.0,
    forgetting: Path | None = None,
    rl: ResolvedRl | None = None,
) -> ResolvedRun:
    """Return the run of a job on prepared data, `folders`, with their weights in the mixture.

    The other arguments are the fields of `ResolvedRun` that are resolved in different ways for different jobs.

    Raises:
        DataError: the sources' `max_epochs` are reached before the run's end.
    """
    root = job.storage.folder
    assert job.run.name is not None, "the configuration names every run"
    if job.data.max_epochs:
        prepared = [load_for_training(folder) for folder in folders]
        order = order_of(job, prepared, tuple(folders.values()))
        order.mixture.check(total_steps(job) * job.train.global_batch)
    return ResolvedRun(
        job=job,
        run_dir=root / "runs" / job.run.name,
        runs=root / "runs",
        folders=tuple(folders),
        weights=tuple(folders.values()),
        total_steps=total_steps(job),
        config=flatten(job),
        # Of the keys that may not change when a run resumes.
        config_digest=digest(job, ignore=is_changeable),
        code_commit=code_commit(),
        model_folder=model_folder,
        parent=parent,
        parent_digest=parent_digest,
        rl=rl,
        forgetting=forgetting,
        memory_plan=memory_plan,
        worker_bytes=worker_bytes,
        uri=None if job.storage.uri is None else f"{job.storage.uri}/runs/{job.run.name}",
    )


def resolve_pretraining(job: PretrainJob) -> ResolvedRun:
    """Find and cross-check all inputs of a pretraining run, before Ray starts.

    Raises:
        DataError: the data isn't prepared, or can't be mixed.
        ConfigError: the model and the data don't fit.
    """
    # Text isn't prepared on the way, as messages are: it may take hours, and needs no GPUs.
    folders = prepared_folders(job)
    prepared = [_open_prepared(folder, job) for folder in folders]
    _check_together(prepared, job)
    vocab_size = job.arch.vocab_size or prepared[0].manifest.tokenizer.vocab_size
    refuse_too_large(job, job.arch, vocab_size)
    model_folder, parent, parent_digest = None, None, None
    if job.model is not None:
        model = resolve_model(job.model, job.tracking, job.storage.folder)
        model_folder, parent = model.folder, model.name
        parent_digest = weights_digest(model.folder)
    if job.run.from_ is not None:
        # The weights come from that run's checkpoint, which has digests of its own.
        parent, parent_digest = f"run:{job.run.from_}", None
    return resolved_run(
        job,
        folders,
        model_folder=model_folder,
        parent=parent,
        parent_digest=parent_digest,
        memory_plan=memory_plan(job, job.arch, vocab_size),
        worker_bytes=node_memory(job, job.arch, vocab_size, allowed_workers(job)[0]).each,
    )


def refuse_too_large(job: TrainJob, arch: ArchConfig, vocab_size: int) -> None:
    """Refuse a job that doesn't fit the devices, or this machine's memory if its workers will run here.

    Raises:
        ConfigError: with the numbers, and changes with which it fits.
    """
    cluster = job.cluster
    if cluster.address == "local" and cluster.host_memory_gib is None:
        here = replace(cluster, host_memory_gib=round(machine_memory() / GIB, 1))
        job = replace(job, cluster=here)
    if problems := memory_problems(job, arch, vocab_size):
        raise ConfigError(problems)


def prepared_folders(job: PretrainJob) -> dict[Path, float]:
    """Return prepared folder → weight: this configuration's own data, or the mixture's."""
    if job.data.mixture:
        return fetched_mixture(job.data, job.storage)
    folder = prepared_folder(job.data, job.tokenizer, job.run.seed, job.storage.folder).absolute()
    download_folder(job.storage, folder, MANIFEST_NAME)
    return {folder: 1.0}


def _open_prepared(folder: Path, job: PretrainJob) -> PreparedData:
    if not is_finished(folder):
        # The command to prepare with takes the overrides that were typed; `stages` is the pipeline's own.
        typed = [argument for argument in sys.argv[1:] if not argument.startswith("stages")]
        raise DataError(
            f"there is no prepared data in {folder}. Prepare it first, with the same overrides:\n"
            f"  {job_command('prepare', *typed)}"
        )
    return load_for_training(folder)


def _check_together(prepared: list[PreparedData], job: PretrainJob) -> None:
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
    # A larger vocabulary than the tokenizer's is allowed, as padding to a multiple.
    vocabulary = job.arch.vocab_size
    if vocabulary is not None and vocabulary < first.tokenizer.vocab_size:
        problems.append(
            f"arch.vocab_size={vocabulary}: the data's tokenizer has {first.tokenizer.vocab_size}; "
            "set arch.vocab_size=null to take the tokenizer's"
        )
    if problems:
        raise ConfigError(problems)
