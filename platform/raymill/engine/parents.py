"""Models that start from a parent, as every rank and every restart builds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raymill.data.messages.tokenizer import new_token_ids
from raymill.data.store.manifest import PreparedData
from raymill.data.store.validation import ValidationSet
from raymill.engine.agreement import on_all_ranks
from raymill.engine.group import WorkerGroup
from raymill.engine.reference import FrozenModel
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.source_names import source_names
from raymill.engine.trainer import frozen
from raymill.schema.jobs import ParentJob
from raymill.schema.sections import EvaluationConfig


def new_ids(resolved: ResolvedRun, prepared: PreparedData) -> list[int]:
    """Tokens that the prepared data has and the parent doesn't know."""
    assert resolved.model_folder is not None  # `parent` was resolved
    return new_token_ids(resolved.model_folder, prepared.tokenizer_folder)


def drawn_ids(resolved: ResolvedRun, prepared: PreparedData) -> list[int]:
    """Tokens whose embeddings the run's seed decides: the parent has none for them, or untrained ones."""
    assert resolved.model_folder is not None
    return _drawn_ids(resolved.model_folder, prepared)


def _drawn_ids(folder: Path, prepared: PreparedData) -> list[int]:
    from raymill.model.parent import untrained_ids
    from raymill.model.shape import named, read_config

    vocab_size = prepared.manifest.tokenizer.vocab_size
    before = int(named(read_config(folder), ("vocab_size",)) or vocab_size)
    return untrained_ids(before, vocab_size, new_token_ids(folder, prepared.tokenizer_folder))


def policy_model(resolved: ResolvedRun, job: ParentJob, prepared: PreparedData) -> Any:
    """The parent as a language model, with adapters where the job has them."""
    from raymill.model.parent import load_parent, with_adapters

    added, seed = drawn_ids(resolved, prepared), job.run.seed
    assert resolved.model_folder is not None
    vocab_size = prepared.manifest.tokenizer.vocab_size
    model: Any = load_parent(resolved.model_folder, vocab_size, added, job.attention, seed)
    return with_adapters(model, job.lora, added, seed) if job.lora.rank else model


def scalar_model(
    resolved: ResolvedRun, job: ParentJob, prepared: PreparedData, folder: Path
) -> tuple[Any, bool]:
    """The model in `folder` with a head that gives one number, and whether it had that head."""
    from raymill.model.parent import load_scalar, with_adapters

    seed, tokenizer = job.run.seed, prepared.manifest.tokenizer
    added = _drawn_ids(folder, prepared)
    model, has_head = load_scalar(
        folder, tokenizer.vocab_size, added, job.attention, seed, tokenizer.end_of_text_id
    )
    if job.lora.rank:
        model = with_adapters(model, job.lora, added, seed, "SEQ_CLS")
    return model, has_head


def frozen_reference(
    resolved: ResolvedRun, job: ParentJob, prepared: PreparedData, model: Any, group: WorkerGroup
) -> FrozenModel:
    """The parent as the policy's reference: the policy with its adapters switched off, or else a model of
    its own. Collective."""
    if job.lora.rank:
        return FrozenModel(model, adapters_off=True)
    parent = on_all_ranks(group, lambda: policy_model(resolved, job, prepared))
    return FrozenModel(frozen(job, parent, group), adapters_off=False)


def held_out_sets(
    prepared: Sequence[PreparedData], settings: EvaluationConfig, group: WorkerGroup
) -> tuple[tuple[str, ValidationSet], ...]:
    """(name, this rank's held-out rows) of every data source; collective."""
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


def flops_per_token(model: Any, sequence_length: int, output_share: float) -> float:
    """As `plan.flops`: 6 for each trained parameter in a matrix product, 4 for a frozen one, which passes
    gradients on but has none. The output matrix counts by the share of places where logits are computed."""
    from raymill.model.shape import SHAPE_KEYS, named

    # Parameters alone are looked at: adapters' wrappers compute a weight whenever it is, which parts of it
    # under ZeRO-3 don't allow.
    head = model.get_output_embeddings()
    modules = (model.get_input_embeddings(), head, *model.modules())
    tables = {
        id(parameter)
        for place, module in enumerate(modules)
        if module is not None and (place < 2 or isinstance(module, torch.nn.Embedding))
        for parameter in module.parameters()
    }
    blocks = sum(
        _numel(parameter) * (6 if parameter.requires_grad else 4)
        for parameter in model.parameters()
        if id(parameter) not in tables
    )
    output = 0.0
    if head is not None:
        trained = not hasattr(model, "peft_config")
        matrix = max(map(_numel, head.parameters()))
        output = matrix * (6 if trained else 4) * output_share
    layers, hidden, heads = (
        named(model.config, SHAPE_KEYS[key]) for key in ("layers", "hidden_size", "heads")
    )
    attention = 0.0
    if layers and hidden and heads:  # families without attention have no heads
        width = heads * (named(model.config, ("head_dim",)) or hidden // heads)
        attention = 12 * layers * width * sequence_length
    return float(blocks + output + attention)


def _numel(parameter: torch.nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves an empty tensor
