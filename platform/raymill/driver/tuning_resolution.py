"""Resolve a job that starts from a parent model: the parent, the data, and whether they fit.

`jobs/sft.py`, `jobs/reward.py`, `jobs/dpo.py` and `jobs/rlhf.py` share these steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from raymill.cluster.placement import ActorPlacement
from raymill.data.kinds import kind_of, preparation_of
from raymill.data.messages.tokenizer import ChatTokenizer, chat_tokenizer
from raymill.data.store.manifest import (
    MANIFEST_NAME,
    PreparedData,
    is_finished,
    load_for_training,
    load_prepared,
    tokenizer_fingerprint,
)
from raymill.driver.preparation import fetched_mixture, prepared_messages
from raymill.driver.resolution import refuse_too_large, resolved_run
from raymill.engine.resolved_run import ResolvedRl, ResolvedRun
from raymill.errors import ConfigError, DataError
from raymill.model.shape import architecture_of, context_length_of, is_reward_model
from raymill.plan.batch import allowed_workers
from raymill.plan.node import node_memory
from raymill.plan.report import fine_tuning_plan, memory_plan, print_plan, roles_plan
from raymill.reading import is_folder
from raymill.schema.jobs import DpoJob, ParentJob, RewardJob, RlhfJob, SftJob
from raymill.storage.mirror import download_folder
from raymill.track.marker import weights_digest
from raymill.track.registry import ResolvedModel, resolve_model

TuningJob = SftJob | RewardJob | DpoJob | RlhfJob


@dataclass(frozen=True)
class Parent:
    """The model that training starts from, with its tokenizer and the job's chat template."""

    model: ResolvedModel
    tokenizer: ChatTokenizer


def resolve_parent(job: TuningJob) -> Parent:
    """Find the parent model.

    Raises:
        RaymillError: it can't be loaded.
        ConfigError: it is too small, too large, or a reward model.
    """
    model = resolve_model(job.parent, job.tracking, job.storage.folder, key="parent")
    tokenizer = chat_tokenizer(model.folder, job.data.template, job.data.special_tokens)
    parent = Parent(model, tokenizer)
    _check_parent(job, parent)
    return parent


def _check_parent(job: ParentJob, parent: Parent) -> None:
    folder, name = parent.model.folder, parent.model.name
    if is_reward_model(folder) and not job.scalar_head:
        raise ConfigError(
            [f"parent={job.parent}: {name} is a reward model, which has no words to learn"]
        )
    arch = architecture_of(folder)
    if arch is not None:
        vocab_size = max(parent.tokenizer.identity.vocab_size, arch.vocab_size or 0)
        refuse_too_large(job, arch, vocab_size)
    # None: the model has no limit, as with ALiBi or a recurrent state.
    positions = context_length_of(folder)
    problems = [
        f"{key}={value}: longer than the {positions} positions of {name}"
        for key, value in job.position_demands.items()
        if positions is not None and value > positions
    ]
    if problems:
        raise ConfigError(problems)


def print_tuning_plan(job: TuningJob, parent: Parent) -> None:
    """Print the plan of a run that starts from a parent; nothing is started or written."""
    # A mixture's folders are prepared by jobs of their own.
    data = ""
    if not job.data.mixture:
        data = preparation_of(job.preparation(), parent.tokenizer).describe()
    name = f"{parent.model.name} ({parent.model.folder})"
    vocab_size = parent.tokenizer.identity.vocab_size
    print_plan(fine_tuning_plan(job, name, architecture_of(parent.model.folder), vocab_size, data))


def prepared_data(job: TuningJob, parent: Parent) -> dict[Path, float]:
    """Return prepared folder → weight: the mixture's, or this configuration's own data.

    The latter is prepared now where it isn't yet. Where it is, it is trained on even if its sources have moved.
    """
    if job.data.mixture:
        return fetched_mixture(job.data, job.storage)
    preparation = job.preparation()
    folder = preparation_of(preparation, parent.tokenizer).folder
    # Another machine may have prepared it already.
    download_folder(job.storage, folder, MANIFEST_NAME)
    if not is_finished(folder):
        prepared_messages(preparation, parent.tokenizer)
    return {folder: 1.0}


def resolve_tuning(
    job: ParentJob,
    parent: Parent,
    folders: dict[Path, float],
    *,
    forgetting: Path | None = None,
    rl: ResolvedRl | None = None,
) -> ResolvedRun:
    """Cross-check parent and data, and return the run.

    Raises:
        DataError: a prepared folder is missing or damaged.
        ConfigError: parent and data don't fit.
    """
    prepared = [load_for_training(folder) for folder in folders]
    _check_together(prepared, job)
    # The data's tokenizer, since a chat template may have added tokens to the parent's.
    arch, vocab_size = (
        architecture_of(parent.model.folder),
        prepared[0].manifest.tokenizer.vocab_size,
    )
    return resolved_run(
        job,
        folders,
        model_folder=parent.model.folder,
        parent=parent.model.name,
        # A folder may be overwritten, and an alias may move: resuming compares the weights themselves.
        parent_digest=weights_digest(parent.model.folder),
        memory_plan="" if arch is None else memory_plan(job, arch, vocab_size),
        worker_bytes=0.0
        if arch is None
        else node_memory(job, arch, vocab_size, allowed_workers(job)[0]).each,
        forgetting=forgetting,
        rl=rl,
    )


def _check_together(prepared: list[PreparedData], job: ParentJob) -> None:
    kind, first = kind_of(job.data), prepared[0].manifest
    problems = []
    for data in prepared:
        manifest = data.manifest
        if manifest.kind != kind.name or manifest.messages is None or first.messages is None:
            problems.append(
                f"data.mixture: {data.folder} holds {manifest.kind}, not {kind.description}; prepare "
                f"them with jobs/prepare.py kind={kind.name}"
            )
            continue
        # One tokenizer and one template serve the whole run: for sampling, scoring and the export.
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


def place_actors(
    job: RlhfJob, parent: Parent, resolved: ResolvedRun, placement: ActorPlacement
) -> ResolvedRun:
    """Print the nodes on which the rollout and reward actors are placed; return the run with them."""
    assert resolved.rl is not None, "reinforcement learning without its resolved part"
    samplers = job.rollout.actors
    models = len(placement.hosts) - samplers
    hosts = placement.describe_hosts(0, samplers), placement.describe_hosts(samplers, models)
    arch, vocab_size = architecture_of(parent.model.folder), parent.tokenizer.identity.vocab_size
    print_plan(roles_plan(job, arch, vocab_size, hosts))
    return replace(
        resolved, rl=replace(resolved.rl, scheduling_strategies=placement.scheduling_strategies)
    )


def forgetting_text(job: SftJob, parent: Parent) -> Path | None:
    """Return prepared text on which forgetting is measured; None where it isn't measured.

    With `auto` it is the parent's own data, and is left out silently where that isn't on this machine.

    Raises:
        DataError: the text that the configuration names isn't prepared.
        ConfigError: it was prepared with another tokenizer than the parent's.
    """
    setting, data = job.evaluation.forgetting, parent.model.data
    automatic = setting == "auto"
    if setting == "none" or (automatic and not data):
        return None
    folder = Path(data[0] if automatic else setting)
    if automatic and not is_folder(folder):
        return None
    if not folder.is_absolute():
        folder = job.storage.folder / "data" / folder
        download_folder(job.storage, folder, MANIFEST_NAME)
    try:
        manifest = load_prepared(folder).manifest
    except DataError:
        if automatic:
            return None
        raise
    # Bits per byte before and after are comparable only for the same tokens.
    fingerprint = tokenizer_fingerprint(parent.model.folder / "tokenizer.json")
    if manifest.kind != "text" or manifest.tokenizer.fingerprint != fingerprint:
        if automatic:
            return None
        raise ConfigError(
            [
                f"evaluation.forgetting={setting}: expected text prepared with the parent's tokenizer "
                f"({fingerprint[:12]}), found {manifest.kind} with {manifest.tokenizer.fingerprint[:12]}"
            ]
        )
    return folder
