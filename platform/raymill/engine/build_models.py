"""Construction of the models that start from a parent, the same on every rank and after every restart.

Also their held-out data and their FLOPs per token, which the recipes of such jobs share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from raymill.data.messages.tokenizer import new_token_ids
from raymill.data.store.location import source_names
from raymill.data.store.manifest import PreparedData
from raymill.data.store.validation import ValidationSet
from raymill.engine.group import WorkerGroup, on_all_ranks
from raymill.engine.reference import FrozenModel
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.trainer import freeze_for_inference
from raymill.model.blueprint import Blueprint
from raymill.schema.jobs import ParentJob
from raymill.schema.sections import EvaluationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def seeded_token_ids(folder: Path, prepared: PreparedData) -> list[int]:
    """Return the tokens whose embeddings are drawn from the run's seed.

    The model in `folder` has no embeddings for them, or untrained ones.
    """
    from raymill.model.shape import first_number, read_config
    from raymill.model.vocabulary import untrained_ids

    vocab_size = prepared.manifest.tokenizer.vocab_size
    before = int(first_number(read_config(folder), ("vocab_size",)) or vocab_size)
    return untrained_ids(before, vocab_size, new_token_ids(folder, prepared.tokenizer_folder))


def plan_policy(resolved: ResolvedRun, job: ParentJob, prepared: PreparedData) -> Blueprint:
    """Plan the parent as a language model, with adapters where the job has them."""
    from raymill.model.parent import plan_parent, with_adapters

    folder, seed = parent_folder(resolved), job.run.seed
    added = seeded_token_ids(folder, prepared)
    vocab_size = prepared.manifest.tokenizer.vocab_size
    blueprint = plan_parent(folder, vocab_size, added, job.attention, seed)
    return with_adapters(blueprint, job.lora, added, seed) if job.lora.rank else blueprint


def plan_scalar_policy(
    resolved: ResolvedRun, job: ParentJob, prepared: PreparedData, folder: Path
) -> tuple[Blueprint, bool]:
    """Plan the model in `folder` with a head that gives one number; also return True if it had that head."""
    from raymill.model.parent import plan_scalar_model, with_adapters

    seed, tokenizer = job.run.seed, prepared.manifest.tokenizer
    added = seeded_token_ids(folder, prepared)
    blueprint, has_head = plan_scalar_model(
        folder, tokenizer.vocab_size, added, job.attention, seed, tokenizer.end_of_text_id
    )
    if job.lora.rank:
        blueprint = with_adapters(blueprint, job.lora, added, seed, "SEQ_CLS")
    return blueprint, has_head


def build_reference(
    resolved: ResolvedRun,
    job: ParentJob,
    prepared: PreparedData,
    model: PreTrainedModel,
    group: WorkerGroup,
) -> FrozenModel:
    """Build the policy's reference, which is the parent; collective.

    With adapters it is the policy itself with these switched off, otherwise a model of its own.
    """
    if job.lora.rank:
        return FrozenModel(model, adapters_off=True)
    parent = on_all_ranks(group, lambda: plan_policy(resolved, job, prepared))
    return FrozenModel(freeze_for_inference(job, parent, group), adapters_off=False)


def parent_folder(resolved: ResolvedRun) -> Path:
    """Return the folder of the run's parent."""
    assert resolved.model_folder is not None, "a job with a parent has it resolved by the driver"
    return resolved.model_folder


def open_held_out_sets(
    prepared: Sequence[PreparedData], settings: EvaluationConfig, group: WorkerGroup
) -> tuple[tuple[str, ValidationSet], ...]:
    """Open (name, this rank's held-out rows) of every data source; collective."""
    sets = on_all_ranks(
        group,
        lambda: [
            ValidationSet(
                data.folder,
                rank=group.rank,
                world_size=group.world_size,
                batch_rows=settings.batch,
                rows=settings.rows,
                source=source,
            )
            for source, data in enumerate(prepared)
        ],
    )
    return tuple(zip(source_names(prepared), sets, strict=True))


def flops_per_token(model: PreTrainedModel, sequence_length: int, output_share: float) -> float:
    """Return the FLOPs of training on one token, counted as `plan.parameters.flops_per_token` does.

    Per parameter in a matrix product these are 6 if it is trained and 4 if it is frozen, since a frozen one
    passes gradients on but has none. The output matrix counts by the share of positions with logits.
    """
    from raymill.model.shape import SHAPE_KEYS, first_number

    # Only parameters are looked at: adapters' wrappers compute a weight on access, which fails where a rank has
    # only a part of it (ZeRO-3).
    head = model.get_output_embeddings()
    modules = (model.get_input_embeddings(), head, *model.modules())
    # Look-ups in embedding tables aren't matrix products.
    tables = {
        id(parameter)
        for index, module in enumerate(modules)
        if module is not None and (index < 2 or isinstance(module, torch.nn.Embedding))
        for parameter in module.parameters()
    }
    blocks = sum(
        _numel(parameter) * (6 if parameter.requires_grad else 4)
        for parameter in model.parameters()
        if id(parameter) not in tables
    )
    output = 0.0
    if head is not None:
        # Adapters leave the output matrix frozen.
        trained = not hasattr(model, "peft_config")
        matrix = max(map(_numel, head.parameters()))
        output = matrix * (6 if trained else 4) * output_share
    layers, hidden, heads = (
        first_number(model.config, SHAPE_KEYS[key]) for key in ("layers", "hidden_size", "heads")
    )
    attention = 0.0
    # Families without attention have no heads.
    if layers and hidden and heads:
        width = heads * (first_number(model.config, ("head_dim",)) or hidden // heads)
        attention = 12 * layers * width * sequence_length
    return float(blocks + output + attention)


def _numel(parameter: torch.nn.Parameter) -> int:
    # ZeRO-3 leaves an empty tensor in place of a partitioned parameter.
    return int(getattr(parameter, "ds_numel", parameter.numel()))
