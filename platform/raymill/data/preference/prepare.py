"""Compared answers become a prepared folder: the parent's tokenizer with a chat template, shards of pairs,
a quarantine file, and the manifest that vouches for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from raymill.data.messages.prepare import (
    Preparation,
    judged_manifest,
    messages_folder,
    plan_message_units,
    shaping_messages,
)
from raymill.data.messages.report import unused_keys
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.preference.judgements import (
    agreement,
    from_texts,
    pair_counts,
    shared_prompts,
)
from raymill.data.preference.records import PreferenceReading
from raymill.data.preference.report import summarise
from raymill.data.preference.statistics import Statistics
from raymill.data.preference.unit import PreferenceSettings
from raymill.data.store.manifest import DataManifest, PreferenceFacts
from raymill.data.text.unit import UnitResult
from raymill.schema.data_sections import PreferenceConfig
from raymill.schema.jobs import PreferencePrepareJob


def preference_folder(
    data: PreferenceConfig, tokenizer: ChatTokenizer, seed: int, storage_root: str | Path
) -> Path:
    """`<storage root>/data/<data.name>-<digest8>`, named by what shapes it, as for text."""
    return messages_folder(data, shaping_messages(data, tokenizer, seed), storage_root)


def preparation(job: PreferencePrepareJob, tokenizer: ChatTokenizer) -> Preparation:
    """How a job's compared answers are prepared."""
    data, validation = job.data, job.data.validation
    settings = PreferenceSettings(
        folder=str(preference_folder(data, tokenizer, job.seed, job.storage.folder)),
        reading=PreferenceReading(
            None if data.format == "auto" else data.format,
            validation.group_column,
            validation.fraction,
            job.seed,
        ),
        thinking=data.thinking,
        tokenizer=tokenizer.identity,
        template_sha256=tokenizer.template_sha256,
        sequence_length=data.sequence_length,
        row_predictions=data.row_predictions,
        row_group_rows=data.row_group_rows,
        seed=job.seed,
    )
    return Preparation(
        data=job.data,
        tokenizer=tokenizer,
        settings=settings,
        plan=partial(plan_message_units, data, "preferences"),
        manifest=partial(_manifest, job, tokenizer, settings),
        summarise=summarise,
    )


def _manifest(
    job: PreferencePrepareJob,
    tokenizer: ChatTokenizer,
    settings: PreferenceSettings,
    results: Sequence[UnitResult],
) -> DataManifest:
    """Judge the results as a whole and put them together."""
    shaping = shaping_messages(job.data, tokenizer, job.seed)
    base = judged_manifest(
        job.data, tokenizer, settings, results, shaping, kind="preference", what="pair"
    )
    judged = {
        split: from_texts(result.facts["judgements"][split] for result in results)
        for split in base.splits
    }
    summaries = {
        split: Statistics.total(result.facts["statistics"][split] for result in results).summary(
            pair_counts(judged[split])
        )
        for split in base.splits
    }
    everything = from_texts(
        result.facts["judgements"][split] for result in results for split in base.splits
    )
    return replace(
        base,
        preference=PreferenceFacts(
            template_sha256=tokenizer.template_sha256,
            end_of_turn_id=tokenizer.end_of_turn_id,
            pairs=summaries["train"]["pairs"],
            prompts=summaries["train"]["prompts"],
            statistics={
                **summaries,
                # A prompt on both sides would make held-out figures flatter.
                "leaked": shared_prompts(judged["train"], judged["validation"]),
                "agreement": agreement(everything),
                "unused": unused_keys(results),
            },
        ),
    )
