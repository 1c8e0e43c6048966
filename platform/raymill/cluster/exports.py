"""What a finished run leaves behind as models, by the kind of job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymill.checkpoint.resume import Found
from raymill.config.schema import ParentJob, PretrainJob, RewardJob
from raymill.data.chat.questions import read_questions
from raymill.data.manifest import Prepared, load_prepared
from raymill.data.split import VALIDATION
from raymill.data.validation import ValidationSet
from raymill.engine.assignment import Assignment
from raymill.track.marker import is_exported, write_marker

PROBES = 4  # held-out conversations on which a saved model is compared with the trained one


@dataclass(frozen=True)
class Export:
    """A Hugging Face folder; `adapter` is another with LoRA adapters alone."""

    folder: Path
    adapter: Path | None = None


def export_checkpoint(assignment: Assignment, found: Found) -> Export:
    """The checkpoint as Hugging Face folders; not written again where every byte of them is there already.

    Raises:
        StorageError: that can't be known.
    """
    job = assignment.job
    target = assignment.run_dir / "export"
    adapter = target.with_name("adapter") if isinstance(job, ParentJob) and job.lora.rank else None
    lineage = {
        "checkpoint": found.directory.name,
        "checkpoint_digest": found.manifest.digest,
        "data_digests": list(found.manifest.data_digests),
        "config_digest": found.manifest.config_digest,
        "code_commit": found.manifest.code_commit,
        "parent": found.manifest.parent,
        "data": [str(folder) for folder in assignment.folders],
    }
    folders = [target] if adapter is None else [target, adapter]
    if not all(is_exported(folder, lineage) for folder in folders):
        prepared = [load_prepared(folder) for folder in assignment.folders]
        if isinstance(job, PretrainJob):
            _pretrained(job, prepared[0], found, target)
        else:
            _fine_tuned(assignment, prepared, found, target)
        for folder in folders:
            write_marker(folder, lineage)
    return Export(target, adapter)


def _pretrained(job: PretrainJob, prepared: Prepared, found: Found, target: Path) -> None:
    from raymill.model.export import export_folder

    tokenizer = prepared.manifest.tokenizer
    export_folder(
        found.reader(),
        job.arch,
        job.arch.vocab_size or tokenizer.vocab_size,
        tokenizer.end_of_text_id,
        prepared.tokenizer_folder,
        target,
        job.train.precision,
    )


def _fine_tuned(
    assignment: Assignment, prepared: list[Prepared], found: Found, target: Path
) -> None:
    """Built as the workers built it: a checkpoint holds only what was trained."""
    from raymill.engine.recipes import recipe_of
    from raymill.engine.trainer import load_weights
    from raymill.model.finetuned import save_finetuned
    from raymill.model.quiet import quieten

    quieten()
    model: Any = recipe_of(assignment, prepared).build_model(fresh=False)
    load_weights(model, found.reader())
    manifest = prepared[0].manifest
    assert manifest.messages is not None
    save_finetuned(
        model,
        prepared[0].tokenizer_folder,
        target,
        precision=assignment.job.train.precision,
        stop_ids=(manifest.messages.end_of_turn_id, manifest.tokenizer.end_of_text_id),
        pad_id=manifest.tokenizer.end_of_text_id,
        probe_ids=_probes(prepared[0]),
        scalar=isinstance(assignment.job, RewardJob),
    )


def _probes(prepared: Prepared) -> list[list[int]]:
    """Held-out questions with their answers, better answers, or prompts."""
    chat = prepared.manifest.chat
    if chat is not None:
        questions = read_questions(prepared.folder / chat.questions)
        held_out = (q for q in questions if q.split == VALIDATION)
        found = [
            [*q.prompt_ids, *q.answer_ids] for _, q in zip(range(PROBES), held_out, strict=False)
        ]
        return found or [[chat.end_of_turn_id]]
    rows_ = ValidationSet(prepared.folder, rank=0, world_size=1, batch_rows=PROBES, rows=PROBES)
    return [
        tokens[:length].tolist()
        for rows in rows_
        for tokens, length in zip(rows.tokens, rows.first_length, strict=True)
    ]
