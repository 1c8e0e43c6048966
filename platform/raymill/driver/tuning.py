"""Jobs that start from a parent model, on the driver: resolve parent and data, prepare it if need be, train.

`jobs/sft.py`, `jobs/reward.py`, `jobs/dpo.py` and `jobs/rlhf.py` all run through here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raymill.cluster.placement import ActorPlacement, reserved
from raymill.cluster.session import connect, warm_up
from raymill.config.memory_check import memory_problems
from raymill.data.messages.tokenizer import ChatTokenizer, chat_tokenizer
from raymill.data.store.manifest import (
    MANIFEST_NAME,
    Prepared,
    is_finished,
    load_prepared,
    tokenizer_fingerprint,
)
from raymill.driver.preparation import fetched_mixture, kind_of, prepared_messages
from raymill.driver.rewards import actors_of, reference_problems, resolve_rewards
from raymill.driver.training import acquire_run, complete, last_checkpoint, resolved_run, train
from raymill.engine.resolved_run import ResolvedRun
from raymill.errors import ConfigError, DataError
from raymill.reading import is_folder
from raymill.schema.jobs import DpoJob, ParentJob, RewardJob, RlhfJob, SftJob
from raymill.storage.mirror import fetch
from raymill.track.marker import weights_digest
from raymill.track.registry import ResolvedModel, resolve_model

Tuning = SftJob | RewardJob | DpoJob | RlhfJob


def run(job: Tuning) -> int:
    """Train as `job` says; returns the process's exit code.

    Raises:
        RaymillError: with a message for the user; what was committed stays.
    """
    if not job.dry_run:
        warm_up(job.cluster)
    root = job.storage.folder
    parent = resolve_model(job.parent, job.tracking, root, key="parent")
    tokenizer = chat_tokenizer(parent.folder, job.data.template, job.data.special_tokens)
    _check_parent(job, parent, tokenizer)
    others = resolve_rewards(job, parent, tokenizer) if isinstance(job, RlhfJob) else {}
    if job.dry_run:
        return _print_plan(job, parent, tokenizer)
    prepared = _prepared(job, tokenizer)
    with acquire_run(replace(resolve(job, parent, prepared), **others)) as (resolved, lease):
        last = last_checkpoint(resolved)
        if last is not None:
            return complete(resolved, last)
        beside = actors_of(job)
        with connect(job.cluster, job.run, beside), reserved(beside) as room:
            if isinstance(job, RlhfJob):
                _print_roles(job, parent, tokenizer, room)
            return train(replace(resolved, places=room.places), lease, beside)


def _print_plan(job: Tuning, parent: ResolvedModel, tokenizer: ChatTokenizer) -> int:
    from raymill.model.shape import shape_of
    from raymill.plan.report import fine_tuning_plan, print_plan

    preparation = job.preparation()
    data = (
        "" if job.data.mixture else kind_of(job.data).preparation(preparation, tokenizer).describe()
    )
    vocab_size = tokenizer.identity.vocab_size
    arch = shape_of(parent.folder)
    print_plan(fine_tuning_plan(job, f"{parent.name} ({parent.folder})", arch, vocab_size, data))
    return 0


def _print_roles(
    job: RlhfJob, parent: ResolvedModel, tokenizer: ChatTokenizer, room: ActorPlacement
) -> None:
    """Who sits where, before anything starts."""
    from raymill.model.shape import shape_of
    from raymill.plan.report import print_plan, roles_plan

    samplers = job.rollout.actors
    hosts = room.spelled(0, samplers), room.spelled(samplers, len(room.hosts) - samplers)
    print_plan(roles_plan(job, shape_of(parent.folder), tokenizer.identity.vocab_size, hosts))


def _prepared(job: Tuning, tokenizer: ChatTokenizer) -> dict[Path, float]:
    """Prepared folder → weight: this configuration's own data, or the mixture's."""
    if job.data.mixture:
        return fetched_mixture(job.data, job.storage)
    preparation = job.preparation()
    folder = kind_of(job.data).preparation(preparation, tokenizer).folder
    fetch(job.storage, folder, MANIFEST_NAME)
    if not is_finished(folder):
        prepared_messages(preparation, tokenizer)
    return {folder: 1.0}  # what was prepared is trained on, wherever its inputs are by now


def resolve(job: ParentJob, parent: ResolvedModel, folders: dict[Path, float]) -> ResolvedRun:
    """Cross-check everything the run needs, before workers start.

    Raises:
        DataError: a prepared folder is missing or damaged.
        ConfigError: parent and data don't fit.
    """
    prepared = [load_prepared(folder) for folder in folders]
    _check_together(prepared, job)
    if isinstance(job, RlhfJob) and (problems := reference_problems(job, prepared)):
        raise ConfigError(problems)
    return resolved_run(
        job,
        folders,
        model_folder=parent.folder,
        parent=parent.name,
        parent_digest=weights_digest(parent.folder),
        memory_plan=_memory_plan(job, parent, prepared[0].manifest.tokenizer.vocab_size),
        forgetting=_forgetting(job, parent) if isinstance(job, SftJob) else None,
    )


def _memory_plan(job: ParentJob, parent: ResolvedModel, vocab_size: int) -> str:
    from raymill.model.shape import shape_of
    from raymill.plan.report import memory_plan

    arch = shape_of(parent.folder)
    return "" if arch is None else memory_plan(job, arch, vocab_size)


def _check_parent(job: ParentJob, parent: ResolvedModel, tokenizer: ChatTokenizer) -> None:
    from raymill.model.shape import gives_a_number, positions_of, shape_of

    if gives_a_number(parent.folder) and not isinstance(job, RewardJob):
        raise ConfigError(
            [f"parent={job.parent}: {parent.name} is a reward model, which has no words to learn"]
        )
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
    if isinstance(job, SftJob) and job.evaluation.questions:
        asked["evaluation.answer_tokens"] = job.evaluation.answer_tokens + 1  # and a question
    if isinstance(job, RlhfJob):
        asked["data.sequence_length + 1 + rollout.max_new_tokens"] = job.max_sequence_tokens
    problems = [
        f"{key}={value}: longer than the {positions} positions of {parent.name}"
        for key, value in asked.items()
        if value > positions
    ]
    if problems:
        raise ConfigError(problems)


def _check_together(prepared: list[Prepared], job: ParentJob) -> None:
    kind, first = kind_of(job.data), prepared[0].manifest
    problems = []
    for data in prepared:
        manifest = data.manifest
        if manifest.kind != kind.name or manifest.messages is None or first.messages is None:
            problems.append(
                f"data.mixture: {data.folder} holds {manifest.kind}, not {kind.what}; prepare "
                f"them with jobs/prepare.py kind={kind.name}"
            )
            continue
        if (manifest.tokenizer, manifest.messages.template_sha256) != (
            first.tokenizer,
            first.messages.template_sha256,
        ):
            problems.append(
                f"data.mixture: {data.folder} was prepared with another tokenizer or chat template "
                f"than {prepared[0].folder}; prepare both for the same parent"
            )
        if manifest.sequence_length != job.data.row_predictions:
            problems.append(
                f"data.sequence_length={job.data.sequence_length}: {data.folder} was prepared for "
                f"rows of {manifest.sequence_length}, not {job.data.row_predictions}"
            )
    if problems:
        raise ConfigError(problems)


def _forgetting(job: SftJob, parent: ResolvedModel) -> Path | None:
    """The prepared text that is watched. `auto` is silent where the parent's data isn't at hand."""
    asked = job.evaluation.forgetting
    if asked == "none" or (asked == "auto" and not parent.data):
        return None
    folder = Path(parent.data[0] if asked == "auto" else asked)
    if asked == "auto" and not is_folder(folder):
        return None
    if not folder.is_absolute():
        folder = job.storage.folder / "data" / folder
        fetch(job.storage, folder, MANIFEST_NAME)
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
