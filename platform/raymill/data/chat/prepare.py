"""Conversations become a prepared folder: the parent's tokenizer with a chat template, shards of packed
rows, held-out questions, a quarantine file, and the manifest that vouches for them.

As with text, the manifest comes last, and whatever stands without one is a start for the next try.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from raymill.config.schema import ChatConfig, ChatPrepareJob
from raymill.data.chat.pack import efficiency
from raymill.data.chat.questions import QUESTIONS_NAME, lowest, read_questions, write_questions
from raymill.data.chat.records import ChatReading
from raymill.data.chat.report import QUARANTINE_NAME, summarise
from raymill.data.chat.statistics import Statistics
from raymill.data.chat.tokenizer import ChatTokenizer
from raymill.data.chat.unit import ChatSettings, quarantine_path, unit_questions_path
from raymill.data.inputs_check import refuse_changed_inputs
from raymill.data.location import NOT_SHAPING
from raymill.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    TOKENIZER_FOLDER,
    ChatFacts,
    Manifest,
    Prepared,
    Split,
    load_prepared,
    write_manifest,
)
from raymill.data.pack import dtype_for
from raymill.data.prepare_report import announce, announce_existing, planned
from raymill.data.prepare_steps import judged_bad_inputs, only_writer, remove_leftovers, run_units
from raymill.data.sources import BY_RECORD, Piece, Unit, plan_units
from raymill.data.unit import UnitResult
from raymill.durable import canonical_json, sha256_file, sha256_text, write_atomic
from raymill.errors import DataError

CONVERSATIONS_VERSION = 1  # of the embedded ones: raise it when their wording changes


def chat_folder(
    data: ChatConfig, tokenizer: ChatTokenizer, seed: int, storage_root: str | Path
) -> Path:
    """`<storage root>/data/<data.name>-<digest8>`, named by what shapes it, as for text."""
    tree = {"format_version": FORMAT_VERSION, **_shaping(data, tokenizer, seed)}
    digest = sha256_text(canonical_json(tree))[:8]
    return (Path(storage_root) / "data" / f"{data.name}-{digest}").absolute()


def prepare(job: ChatPrepareJob, tokenizer: ChatTokenizer, *, tasks: int | None = None) -> Prepared:
    """Prepare a job's conversations, or find them prepared already, on a Ray that is initialised.

    Raises:
        DataError: the input is missing or too bad, or the folder holds something else than it
        should.
    """
    units = plan_chat_units(job.data)
    folder = chat_folder(job.data, tokenizer, job.seed, job.storage.root)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    settings = _settings(job, tokenizer, folder)
    with only_writer(folder):
        if (folder / MANIFEST_NAME).exists():
            return _existing(folder, units, settings)
        announce(folder, units)
        tokenizer.save(folder / TOKENIZER_FOLDER)
        results = run_units(units, settings, tasks)
        manifest = _manifest(job, tokenizer, settings, results)
        remove_leftovers(folder, manifest, len(units))
        write_manifest(folder, manifest)
    prepared = load_prepared(folder)
    summarise(prepared, results, time.monotonic() - started)
    return prepared


def describe(job: ChatPrepareJob, tokenizer: ChatTokenizer) -> str:
    """What `prepare` would read and write, for a dry run."""
    folder = chat_folder(job.data, tokenizer, job.seed, job.storage.root)
    state = "finished" if (folder / MANIFEST_NAME).exists() else "not finished"
    return f"{planned(plan_chat_units(job.data))} → {folder} ({state})"


def find_prepared(job: ChatPrepareJob, tokenizer: ChatTokenizer) -> Prepared | None:
    """The finished folder, verified, if there is one and its inputs are still what they were."""
    folder = chat_folder(job.data, tokenizer, job.seed, job.storage.root)
    if not (folder / MANIFEST_NAME).exists():
        return None
    return _existing(folder, plan_chat_units(job.data), _settings(job, tokenizer, folder))


def plan_chat_units(data: ChatConfig) -> list[Unit]:
    """Find the inputs and cut them into units.

    Raises:
        DataError: a path matches nothing, or is plain text.
    """
    if data.source == "stdlib_chat":
        name = "stdlib_chat"
        return [(Piece(name, "", "stdlib_chat", BY_RECORD, 0, 1, 1, 0),)]
    units = plan_units(data, seed=0)
    for unit in units:
        for piece in unit:
            if piece.format in ("txt", "md"):
                raise DataError(
                    f"{piece.path} is plain text; conversations are read from .jsonl, .jsonl.gz, "
                    ".jsonl.zst, .parquet and folders of datasets.save_to_disk."
                )
    return units


def _shaping(data: ChatConfig, tokenizer: ChatTokenizer, seed: int) -> dict[str, object]:
    left_out = (*NOT_SHAPING, "template", "special_tokens")
    tree = {key: value for key, value in asdict(data).items() if key not in left_out}
    if data.source == "stdlib_chat":  # another Python has other functions
        tree["python"] = platform.python_version()
        tree["conversations"] = CONVERSATIONS_VERSION
    return {
        "data": tree,
        "tokenizer": tokenizer.identity.fingerprint,
        "template": tokenizer.template_sha256,
        "seed": seed,
    }


def _existing(folder: Path, units: Sequence[Unit], settings: ChatSettings) -> Prepared:
    prepared = load_prepared(folder)
    refuse_changed_inputs(prepared, units, settings)
    announce_existing(prepared)
    return prepared


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
) -> Manifest:
    """Judge the results as a whole and put them together."""
    folder = Path(settings.folder)
    quarantine = folder / QUARANTINE_NAME
    kept = [quarantine_path(folder, result.index) for result in results]
    write_atomic(quarantine, "".join(path.read_text(encoding="utf-8") for path in kept))
    bad = judged_bad_inputs(job.data, results, quarantine)
    splits = {
        name: Split.of(tuple(r.shards[name] for r in results if name in r.shards))
        for name in ("train", "validation")
    }
    for name, what in (("train", "to train on"), ("validation", "held out")):
        if not splits[name].rows:
            raise DataError(
                f"No conversation is {what}: of {sum(r.documents for r in results)} usable ones all "
                "fell on the other side. Give more conversations, change "
                "data.validation.fraction, or give data.validation.path."
            )
    questions = [
        question
        for result in results
        for question in read_questions(unit_questions_path(folder, result.index))
    ]
    write_questions(folder / QUESTIONS_NAME, lowest(questions, job.data.questions))
    train = Statistics.total(result.facts["statistics"]["train"] for result in results)
    held_out = Statistics.total(result.facts["statistics"]["validation"] for result in results)
    digests = Counter(digest for result in results for digest in result.facts["digests"])
    capacity = settings.capacity
    return Manifest(
        format_version=FORMAT_VERSION,
        name=job.data.name,
        sequence_length=job.data.sequence_length,
        row_group_rows=job.data.row_group_rows,
        dtype=dtype_for(settings.tokenizer.vocab_size),
        tokenizer=settings.tokenizer,
        splits=splits,
        inputs=tuple(entry for result in results for entry in result.inputs),
        documents=train.conversations + held_out.conversations,
        bad_inputs=bad,
        contamination=None,
        config=_shaping(job.data, tokenizer, job.seed),
        kind="chat",
        chat=ChatFacts(
            template_sha256=tokenizer.template_sha256,
            end_of_turn_id=tokenizer.end_of_turn_id,
            conversations=train.conversations,
            learned_tokens=train.learned,
            packing=round(efficiency(splits["train"].rows, train.tokens, capacity), 6),
            questions=QUESTIONS_NAME,
            questions_sha256=sha256_file(folder / QUESTIONS_NAME),
            statistics={
                "train": train.to_json(),
                "validation": held_out.to_json(),
                "duplicates": digests.total() - len(digests),
                # The same conversation on both sides would make held-out figures flatter.
                "leaked": sum(
                    f"v{digest[1:]}" in digests for digest in digests if digest[0] == "t"
                ),
            },
        ),
    )
