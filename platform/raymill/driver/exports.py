"""What a finished run leaves behind as models, by the kind of job."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raymill.checkpoint.resume import Found
from raymill.data.chat.questions import read_questions
from raymill.data.store.manifest import Prepared, load_prepared
from raymill.data.store.split import VALIDATION
from raymill.data.store.validation import ValidationSet
from raymill.data.text.control_tokens import ControlTokens
from raymill.engine.resolved_run import ResolvedRun
from raymill.schema.jobs import ParentJob, PretrainJob, RewardJob
from raymill.track.marker import is_exported, write_marker

PROBES = 4  # held-out conversations on which a saved model is compared with the trained one
PROBE_TOKENS = 256


@dataclass(frozen=True)
class Export:
    """A Hugging Face folder; `adapter` is another with LoRA adapters alone."""

    folder: Path
    adapter: Path | None = None


def export_checkpoint(resolved: ResolvedRun, found: Found) -> Export:
    """The checkpoint as Hugging Face folders; not written again where every byte of them is there already.

    Raises:
        StorageError: that can't be known.
    """
    job = resolved.job
    target = resolved.run_dir / "export"
    adapter = target.with_name("adapter") if isinstance(job, ParentJob) and job.lora.rank else None
    lineage = {
        "checkpoint": found.directory.name,
        "checkpoint_digest": found.manifest.digest,
        "data_digests": list(found.manifest.data_digests),
        "config_digest": found.manifest.config_digest,
        "code_commit": found.manifest.code_commit,
        "parent": found.manifest.parent,
        "data": [str(folder) for folder in resolved.folders],
    }
    folders = [target] if adapter is None else [target, adapter]
    if not all(is_exported(folder, lineage) for folder in folders):
        prepared = [load_prepared(folder) for folder in resolved.folders]
        if isinstance(job, PretrainJob):
            _pretrained(resolved, prepared, found, target)
        else:
            _fine_tuned(resolved, prepared, found, target)
        for folder in folders:
            write_marker(folder, lineage)
    return Export(target, adapter)


def _pretrained(
    resolved: ResolvedRun, prepared: list[Prepared], found: Found, target: Path
) -> None:
    from raymill.model.export import export_folder

    job, first = resolved.job, prepared[0]
    assert isinstance(job, PretrainJob)
    export_folder(
        found.reader(),
        job.arch,
        job.arch.vocab_size or first.manifest.tokenizer.vocab_size,
        ControlTokens.of(first, resolved.model_folder),
        first.tokenizer_folder,
        target,
        job.train.precision,
        parent=resolved.model_folder,
        trained=partial(_trained, resolved, prepared, found),
        probe_ids=_probes(first),
    )


def _fine_tuned(
    resolved: ResolvedRun, prepared: list[Prepared], found: Found, target: Path
) -> None:
    from raymill.model.finetuned import save_finetuned

    scalar = isinstance(resolved.job, RewardJob)
    save_finetuned(
        _trained(resolved, prepared, found),
        prepared[0].tokenizer_folder,
        target,
        precision=resolved.job.train.precision,
        tokens=ControlTokens.of(prepared[0], resolved.model_folder),
        probe_ids=_probes(prepared[0], whole=scalar),
        parent=resolved.model_folder,
        scalar=scalar,
    )


def _trained(resolved: ResolvedRun, prepared: list[Prepared], found: Found) -> Any:
    """The model, built as the workers built it: a checkpoint holds only what was trained."""
    from raymill.engine.trainer import load_weights
    from raymill.model.quiet import silence_libraries
    from raymill.recipes.registry import recipe_of

    silence_libraries()
    model: Any = recipe_of(resolved, prepared).build_model(fresh=False)
    load_weights(model, found.reader())
    return model


def _probes(prepared: Prepared, *, whole: bool = False) -> list[list[int]]:
    """Held-out texts, questions with their answers, better answers, or prompts, of unequal lengths: what is
    shorter is padded. Their beginnings, unless `whole`: a logit for each word of a vocabulary is a lot."""
    chat, end = prepared.manifest.chat, prepared.manifest.tokenizer.end_of_text_id
    if chat is not None:
        questions = read_questions(prepared.folder / chat.questions)
        held_out = (q for q in questions if q.split == VALIDATION)
        found = [
            [*q.prompt_ids, *q.answer_ids, chat.end_of_turn_id]
            for _, q in zip(range(PROBES), held_out, strict=False)
        ]
    else:
        rows_ = ValidationSet(prepared.folder, rank=0, world_size=1, batch_rows=PROBES, rows=PROBES)
        found = [
            tokens[:length].tolist()
            for rows in rows_
            for tokens, length in zip(rows.tokens, rows.first_length, strict=True)
        ]
    if whole:
        return found or [[end], [end, end]]
    # A row of running text holds one token more than the model has places.
    longest = min(PROBE_TOKENS, prepared.manifest.sequence_length)
    return [ids[: max(1, longest - n)] for n, ids in enumerate(found)] or [[end], [end, end]]
