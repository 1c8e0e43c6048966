"""Export a checkpoint as Hugging Face folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.checkpoint.resume import VerifiedCheckpoint
from raymill.data.chat.questions import read_questions
from raymill.data.store.manifest import PreparedData, load_prepared
from raymill.data.store.split import VALIDATION
from raymill.data.store.validation import ValidationSet
from raymill.data.text.control_tokens import ControlTokens
from raymill.engine.resolved_run import ResolvedRun
from raymill.track.marker import is_exported, write_marker

if TYPE_CHECKING:
    from raymill.model.lazy import LazyModel

PROBES = 4  # held-out conversations on which a saved model is compared with the trained one
PROBE_TOKENS = 256


@dataclass(frozen=True)
class Export:
    """Hugging Face folder of a model; `adapter` is a second one with the LoRA adapters alone."""

    folder: Path
    adapter: Path | None = None


def export_checkpoint(resolved: ResolvedRun, checkpoint: VerifiedCheckpoint) -> Export:
    """Export the checkpoint, unless the same export is complete on disk already.

    Raises:
        StorageError: the export on disk can't be read.
    """
    job = resolved.job
    target = resolved.run_dir / "export"
    adapter = target.with_name("adapter") if job.has_adapters else None
    # It identifies the export: the same lineage in the folder's marker means that nothing is to be done.
    lineage = {
        "checkpoint": checkpoint.directory.name,
        "checkpoint_digest": checkpoint.manifest.digest,
        "data_digests": list(checkpoint.manifest.data_digests),
        "config_digest": checkpoint.manifest.config_digest,
        "code_commit": checkpoint.manifest.code_commit,
        "parent": checkpoint.manifest.parent,
        "data": [str(folder) for folder in resolved.folders],
    }
    folders = [target] if adapter is None else [target, adapter]
    if not all(is_exported(folder, lineage) for folder in folders):
        digests = _export(resolved, checkpoint, target)
        # The marker comes last, so that a folder without one is incomplete.
        write_marker(target, lineage, digests)
        if adapter is not None:
            write_marker(adapter, lineage)
    return Export(target, adapter)


def _export(
    resolved: ResolvedRun, checkpoint: VerifiedCheckpoint, target: Path
) -> Mapping[str, str]:
    """Write the folders; return the sha256 of the model's files of weights."""
    from raymill.model.export import save_model

    prepared = [load_prepared(folder) for folder in resolved.folders]
    scalar = resolved.job.scalar_head
    saved = save_model(
        _trained_model(resolved, prepared, checkpoint),
        prepared[0].tokenizer_folder,
        target,
        precision=resolved.job.train.precision,
        tokens=ControlTokens.from_prepared(prepared[0], resolved.model_folder),
        probe_ids=_probe_ids(prepared[0], whole=scalar),
        parent=resolved.model_folder,
        scalar=scalar,
    )
    return saved.digests


def _trained_model(
    resolved: ResolvedRun, prepared: list[PreparedData], checkpoint: VerifiedCheckpoint
) -> LazyModel:
    """Build the model as the workers did, since a checkpoint holds only the trained parameters."""
    from raymill.engine.materialize import continue_from
    from raymill.model.loading import silence_libraries
    from raymill.recipes.registry import recipe_of

    silence_libraries()
    blueprint = recipe_of(resolved, prepared).plan_model(fresh=False)
    continue_from(blueprint, checkpoint.reader())
    return blueprint.lazy()


def _probe_ids(prepared: PreparedData, *, whole: bool = False) -> list[list[int]]:
    """Return held-out sequences on which the exported model is compared with the trained one.

    They are texts, questions with their answers, better answers, or prompts. Their lengths differ, so that
    padding is tested too. Only their beginnings are taken unless `whole`, since the logits of every position
    over a whole vocabulary need much memory.
    """
    chat, end = prepared.manifest.chat, prepared.manifest.tokenizer.end_of_text_id
    if chat is not None:
        questions = read_questions(prepared.folder / chat.questions)
        held_out = (q for q in questions if q.split == VALIDATION)
        sequences = [
            [*q.prompt_ids, *q.answer_ids, chat.end_of_turn_id]
            for _, q in zip(range(PROBES), held_out, strict=False)
        ]
    else:
        rows_ = ValidationSet(prepared.folder, rank=0, world_size=1, batch_rows=PROBES, rows=PROBES)
        sequences = [
            tokens[:length].tolist()
            for rows in rows_
            for tokens, length in zip(rows.tokens, rows.first_length, strict=True)
        ]
    if whole:
        return sequences or [[end], [end, end]]
    # A row of running text holds one token more than the model has positions.
    longest = min(PROBE_TOKENS, prepared.manifest.sequence_length)
    return [ids[: max(1, longest - n)] for n, ids in enumerate(sequences)] or [[end], [end, end]]
