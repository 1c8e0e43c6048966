"""`jobs/sft.py` on the driver: resolve parent and conversations, prepare them if need be, train."""

from __future__ import annotations

from pathlib import Path

from raymill.cluster.preparation import prepared_chat
from raymill.cluster.session import connect
from raymill.cluster.training import complete, last_checkpoint, train
from raymill.config import digest, flatten
from raymill.config.checks import memory_problems
from raymill.config.identity import is_changeable
from raymill.config.schema import SftJob
from raymill.data.chat.prepare import chat_folder
from raymill.data.chat.tokenizer import ChatTokenizer, chat_tokenizer
from raymill.data.location import mixture_folders
from raymill.data.manifest import MANIFEST_NAME, Prepared, load_prepared, tokenizer_fingerprint
from raymill.engine.assignment import Assignment
from raymill.errors import ConfigError, DataError
from raymill.plan.batch import total_steps
from raymill.track.lineage import code_commit
from raymill.track.registry import ResolvedModel, resolve_model, weights_digest


def run(job: SftJob) -> int:
    """Fine-tune as `job` says; returns the process's exit code.

    Raises:
        RaymillError: with a message for the user; what was committed stays.
    """
    root = Path(job.storage.root)
    parent = resolve_model(job.parent, job.tracking, root, key="parent")
    tokenizer = chat_tokenizer(parent.folder, job.data.template, job.data.special_tokens)
    _check_parent(job, parent, tokenizer)
    if job.dry_run:
        return _print_plan(job, parent, tokenizer)
    prepared = _prepared(job, tokenizer)
    assignment = resolve(job, parent, prepared)
    last = last_checkpoint(assignment)
    if last is not None:
        return complete(assignment, last)
    with connect(job.cluster, job.run.workers):
        return train(assignment)


def _print_plan(job: SftJob, parent: ResolvedModel, tokenizer: ChatTokenizer) -> int:
    from raymill.data.chat.prepare import describe
    from raymill.model.shape import shape_of
    from raymill.plan.report import fine_tuning_plan, print_plan

    data = "" if job.data.mixture else describe(job.preparation(), tokenizer)
    vocab_size = tokenizer.identity.vocab_size
    arch = shape_of(parent.folder)
    print_plan(fine_tuning_plan(job, f"{parent.name} ({parent.folder})", arch, vocab_size, data))
    return 0


def _prepared(job: SftJob, tokenizer: ChatTokenizer) -> dict[Path, float]:
    """Prepared folder → weight: this configuration's own conversations, or the mixture's."""
    root = Path(job.storage.root)
    if job.data.mixture:
        return mixture_folders(job.data, root)
    folder = chat_folder(job.data, tokenizer, job.run.seed, root)
    if not (folder / MANIFEST_NAME).exists():
        prepared_chat(job.preparation(), tokenizer)
    return {folder: 1.0}  # what was prepared is trained on, wherever its inputs are by now


def resolve(job: SftJob, parent: ResolvedModel, folders: dict[Path, float]) -> Assignment:
    """Cross-check everything the run needs, before workers start.

    Raises:
        DataError: a prepared folder is missing or damaged.
        ConfigError: parent and data don't fit.
    """
    prepared = [load_prepared(folder) for folder in folders]
    _check_together(prepared, job)
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
        model_folder=parent.folder,
        parent=parent.name,
        parent_digest=weights_digest(parent.folder),
        forgetting=_forgetting(job, parent),
    )


def _check_parent(job: SftJob, parent: ResolvedModel, tokenizer: ChatTokenizer) -> None:
    from raymill.model.shape import positions_of, shape_of

    arch = shape_of(parent.folder)
    if (
        arch is not None
        and not job.lora.rank
        and (
            problems := memory_problems(
                job, arch, max(tokenizer.identity.vocab_size, arch.vocab_size or 0)
            )
        )
    ):
        raise ConfigError(problems)
    positions = positions_of(parent.folder)
    if positions is None:
        return
    asked = {"data.sequence_length": job.data.sequence_length}
    if job.evaluation.questions:
        asked["evaluation.answer_tokens"] = job.evaluation.answer_tokens + 1  # and a question
    problems = [
        f"{key}={value}: longer than the {positions} positions of {parent.name}"
        for key, value in asked.items()
        if value > positions
    ]
    if problems:
        raise ConfigError(problems)


def _check_together(prepared: list[Prepared], job: SftJob) -> None:
    first = prepared[0].manifest
    problems = []
    for data in prepared:
        manifest = data.manifest
        if manifest.kind != "chat" or manifest.chat is None or first.chat is None:
            problems.append(
                f"data.mixture: {data.folder} holds {manifest.kind}, not conversations; prepare "
                "them with jobs/prepare.py kind=chat"
            )
            continue
        if (manifest.tokenizer, manifest.chat.template_sha256) != (
            first.tokenizer,
            first.chat.template_sha256,
        ):
            problems.append(
                f"data.mixture: {data.folder} was prepared with another tokenizer or chat template "
                f"than {prepared[0].folder}; prepare both for the same parent"
            )
        if manifest.sequence_length != job.data.sequence_length:
            problems.append(
                f"data.sequence_length={job.data.sequence_length}: {data.folder} was prepared with "
                f"{manifest.sequence_length}"
            )
    if problems:
        raise ConfigError(problems)


def _forgetting(job: SftJob, parent: ResolvedModel) -> Path | None:
    """The prepared text that is watched. `auto` is silent where the parent's data isn't at hand."""
    asked = job.evaluation.forgetting
    if asked == "none" or (asked == "auto" and not parent.data):
        return None
    folder = Path(parent.data[0] if asked == "auto" else asked)
    if asked == "auto" and not folder.is_dir():
        return None
    if not folder.is_absolute():
        folder = Path(job.storage.root) / "data" / folder
    try:
        manifest = load_prepared(folder).manifest
    except DataError:
        if asked == "auto":
            return None
        raise
    parents = tokenizer_fingerprint(parent.folder / "tokenizer.json")
    if manifest.kind != "text" or manifest.tokenizer.fingerprint != parents:
        if asked == "auto":
            return None
        raise ConfigError(
            [
                f"evaluation.forgetting={asked}: expected text prepared with the parent's tokenizer "
                f"({parents[:12]}), found {manifest.kind} with {manifest.tokenizer.fingerprint[:12]}"
            ]
        )
    return folder
