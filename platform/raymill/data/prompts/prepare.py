"""Prompts become a prepared folder: the parent's tokenizer with a chat template, shards of prompts, the book
that says what each is judged by, a quarantine file, and the manifest that vouches for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raymill.data.messages.prepare import (
    Preparation,
    embedded_unit,
    judged_manifest,
    messages_folder,
    plan_message_units,
    repeated,
    shaping_messages,
)
from raymill.data.messages.report import unused_keys
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.prompts.metadata import BOOK_NAME, merge_books
from raymill.data.prompts.records import PromptsReading
from raymill.data.prompts.report import summarise
from raymill.data.prompts.statistics import Statistics
from raymill.data.prompts.unit import PromptsSettings, unit_book_path
from raymill.data.store.manifest import DataManifest, PromptsFacts
from raymill.data.text.sources import Unit
from raymill.data.text.unit import UnitResult
from raymill.schema.data_sections import PromptsConfig
from raymill.schema.jobs import PromptsPrepareJob


def prompts_folder(
    data: PromptsConfig, tokenizer: ChatTokenizer, seed: int, storage_root: str | Path
) -> Path:
    """`<storage root>/data/<data.name>-<digest8>`, named by what shapes it, as for text."""
    return messages_folder(data, _shaping(data, tokenizer, seed), storage_root)


def plan_prompt_units(data: PromptsConfig) -> list[Unit]:
    """Find the inputs and cut them into units.

    Raises:
        DataError: a path matches nothing, or is plain text.
    """
    if data.source != "prompts":  # asked in the embedded conversations
        return embedded_unit(data.source.replace("prompts", "chat"))
    return plan_message_units(data, "prompts")


def preparation(job: PromptsPrepareJob, tokenizer: ChatTokenizer) -> Preparation:
    """How a job's prompts are prepared."""
    data, validation = job.data, job.data.validation
    settings = PromptsSettings(
        folder=str(prompts_folder(data, tokenizer, job.seed, job.storage.folder)),
        reading=PromptsReading(
            data.verifier, validation.group_column, validation.fraction, job.seed
        ),
        tokenizer=tokenizer.identity,
        template_sha256=tokenizer.template_sha256,
        sequence_length=data.sequence_length,
        row_group_rows=data.row_group_rows,
        seed=job.seed,
    )
    return Preparation(
        data=job.data,
        tokenizer=tokenizer,
        settings=settings,
        plan=partial(plan_prompt_units, data),
        manifest=partial(_manifest, job, tokenizer, settings),
        summarise=summarise,
    )


def _shaping(data: PromptsConfig, tokenizer: ChatTokenizer, seed: int) -> dict[str, Any]:
    return shaping_messages(data, tokenizer, seed, embedded=data.source != "prompts")


def _manifest(
    job: PromptsPrepareJob,
    tokenizer: ChatTokenizer,
    settings: PromptsSettings,
    results: Sequence[UnitResult],
) -> DataManifest:
    """Judge the results as a whole and put them together."""
    shaping = _shaping(job.data, tokenizer, job.seed)
    base = judged_manifest(
        job.data, tokenizer, settings, results, shaping, kind="prompts", what="prompt"
    )
    folder = Path(settings.folder)
    parts = [
        (unit_book_path(folder, result.index), result.facts["book_sha256"]) for result in results
    ]
    statistics = {
        split: Statistics.total(result.facts["statistics"][split] for result in results)
        for split in base.splits
    }
    return replace(
        base,
        prompts=PromptsFacts(
            template_sha256=tokenizer.template_sha256,
            end_of_turn_id=tokenizer.end_of_turn_id,
            prompts=statistics["train"].prompts,
            book=BOOK_NAME,
            book_sha256=merge_books(parts, folder / BOOK_NAME),
            statistics={
                **{split: found.to_json() for split, found in statistics.items()},
                **repeated(results),
                "unused": unused_keys(results),
            },
        ),
    )
