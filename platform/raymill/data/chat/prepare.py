"""Conversations become a prepared folder: the parent's tokenizer with a chat template, shards of packed
rows, held-out questions, a quarantine file, and the manifest that vouches for them.

As with text, the manifest comes last, and whatever stands without one is a start for the next try.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raymill.data.chat.pack import efficiency
from raymill.data.chat.questions import QUESTIONS_NAME, lowest, read_questions, write_questions
from raymill.data.chat.records import ChatReading
from raymill.data.chat.report import summarise
from raymill.data.chat.statistics import Statistics
from raymill.data.chat.unit import ChatSettings, unit_questions_path
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
from raymill.data.store.manifest import ChatFacts, DataManifest
from raymill.data.text.sources import Unit
from raymill.data.text.unit import UnitResult
from raymill.durable import sha256_file
from raymill.schema.data_sections import ChatConfig
from raymill.schema.jobs import ChatPrepareJob


def chat_folder(
    data: ChatConfig, tokenizer: ChatTokenizer, seed: int, storage_root: str | Path
) -> Path:
    """`<storage root>/data/<data.name>-<digest8>`, named by what shapes it, as for text."""
    return messages_folder(data, _shaping(data, tokenizer, seed), storage_root)


def plan_chat_units(data: ChatConfig) -> list[Unit]:
    """Find the inputs and cut them into units.

    Raises:
        DataError: a path matches nothing, or is plain text.
    """
    if data.source != "chat":
        return embedded_unit(data.source)
    return plan_message_units(data, "conversations")


def preparation(job: ChatPrepareJob, tokenizer: ChatTokenizer) -> Preparation:
    """How a job's conversations are prepared."""
    folder = chat_folder(job.data, tokenizer, job.seed, job.storage.folder)
    settings = _settings(job, tokenizer, folder)
    return Preparation(
        data=job.data,
        tokenizer=tokenizer,
        settings=settings,
        plan=partial(plan_chat_units, job.data),
        manifest=partial(_manifest, job, tokenizer, settings),
        summarise=summarise,
    )


def _shaping(data: ChatConfig, tokenizer: ChatTokenizer, seed: int) -> dict[str, Any]:
    return shaping_messages(data, tokenizer, seed, embedded=data.source != "chat")


def _settings(job: ChatPrepareJob, tokenizer: ChatTokenizer, folder: Path) -> ChatSettings:
    data, validation = job.data, job.data.validation
    reading = ChatReading(
        None if data.format == "auto" else data.format,
        validation.group_column,
        validation.fraction,
        job.seed,
    )
    return ChatSettings(
        folder=str(folder),
        reading=reading,
        tokenizer=tokenizer.identity,
        template_sha256=tokenizer.template_sha256,
        sequence_length=data.sequence_length,
        row_group_rows=data.row_group_rows,
        train_on=data.train_on,
        thinking=data.thinking,
        overlong=data.overlong,
        packing=data.packing,
        pack_window=data.pack_window,
        questions=data.questions,
        seed=job.seed,
    )


def _manifest(
    job: ChatPrepareJob,
    tokenizer: ChatTokenizer,
    settings: ChatSettings,
    results: Sequence[UnitResult],
) -> DataManifest:
    """Judge the results as a whole and put them together."""
    shaping = _shaping(job.data, tokenizer, job.seed)
    base = judged_manifest(
        job.data, tokenizer, settings, results, shaping, kind="chat", what="conversation"
    )
    folder = Path(settings.folder)
    questions = [
        question
        for result in results
        for question in read_questions(unit_questions_path(folder, result.index))
    ]
    write_questions(folder / QUESTIONS_NAME, lowest(questions, job.data.questions))
    train = Statistics.total(result.facts["statistics"]["train"] for result in results)
    held_out = Statistics.total(result.facts["statistics"]["validation"] for result in results)
    rows = base.splits["train"].rows
    return replace(
        base,
        chat=ChatFacts(
            template_sha256=tokenizer.template_sha256,
            end_of_turn_id=tokenizer.end_of_turn_id,
            conversations=train.conversations,
            learned_tokens=train.learned,
            packing=round(efficiency(rows, train.tokens, settings.capacity), 6),
            questions=QUESTIONS_NAME,
            questions_sha256=sha256_file(folder / QUESTIONS_NAME),
            statistics={
                "train": train.to_json(),
                "validation": held_out.to_json(),
                **repeated(results),
                "unused": unused_keys(results),
            },
        ),
    )
