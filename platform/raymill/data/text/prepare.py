"""Raw text becomes a prepared folder: a tokenizer, tokenized shards, and the manifest that vouches
for them.

The order of things is what makes a kill harmless: the tokenizer first, then shards with a sidecar
each, the manifest last. Whatever stands without a manifest is only a start for the next try.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from raymill.data.store.location import prepared_folder, shaping_config
from raymill.data.store.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    TOKENIZER_FOLDER,
    Manifest,
    Prepared,
    Split,
    TokenizerIdentity,
    is_finished,
    load_prepared,
    tokenizer_fingerprint,
    write_manifest,
)
from raymill.data.store.pack import dtype_for
from raymill.data.text import tokenizer as tokenizers_room
from raymill.data.text.inputs_check import refuse_changed_inputs
from raymill.data.text.records import Reading
from raymill.data.text.report import announce, announce_existing, planned, summarise
from raymill.data.text.sources import Unit, no_held_out_message, passed_over, plan_units
from raymill.data.text.steps import judged_bad_inputs, only_writer, remove_leftovers, run_units
from raymill.data.text.tasks import measure_contamination, train_tokenizer
from raymill.data.text.unit import UNITS_FOLDER, Settings, UnitResult
from raymill.durable import canonical_json, sha256_text, write_atomic
from raymill.errors import DataError
from raymill.reading import MISSING, read_text
from raymill.schema.jobs import PrepareJob
from raymill.storage.mirror import fetch, keep


def run(job: PrepareJob) -> Prepared:
    """Prepare a job's data, or find it prepared already.

    Raises:
        DataError: the input is missing or too bad, or the folder holds something else than it
        should.
    """
    from raymill.cluster.session import connect

    units = plan_units(job.data, job.seed)
    folder = job_folder(job)
    fetch(job.storage, folder, MANIFEST_NAME)
    if is_finished(folder):
        prepared = existing(job, units)
    else:
        with connect(job.cluster):
            prepared = prepare_with_ray(job, units)
    keep(job.storage, folder, MANIFEST_NAME)
    return prepared


def describe(job: PrepareJob) -> str:
    """What `run` would read and write, for a dry run; reads no text."""
    folder = job_folder(job)
    units = plan_units(job.data, job.seed)
    state = "finished" if is_finished(folder) else "not finished"
    return f"{planned(units, passed_over(job.data))} → {folder} ({state})"


def job_folder(job: PrepareJob) -> Path:
    """Where this job's data lies."""
    return prepared_folder(job.data, job.tokenizer, job.seed, job.storage.folder).absolute()


def existing(job: PrepareJob, units: Sequence[Unit]) -> Prepared:
    """The finished folder, verified, if its inputs are still what they were; else DataError."""
    prepared = load_prepared(job_folder(job))
    settings = _settings(job, prepared.folder, prepared.manifest.tokenizer)
    refuse_changed_inputs(prepared, units, settings)
    if job.tokenizer.path is not None:
        file = Path(job.tokenizer.path)
        loaded = tokenizers_room.load(file, tokenizers_room.end_of_text_of(job.tokenizer))
        if tokenizers_room.fingerprint(loaded) != prepared.manifest.tokenizer.fingerprint:
            raise DataError(
                f"{prepared.folder} was prepared with another tokenizer than {file} holds now; "
                "give the data another data.name, or delete that folder if no run needs it."
            )
    announce_existing(prepared)
    return prepared


def prepare_with_ray(
    job: PrepareJob, units: Sequence[Unit] | None = None, *, tasks: int | None = None
) -> Prepared:
    """`run` on a Ray that is initialised; at most `tasks` units at once (None: one a core)."""
    units = plan_units(job.data, job.seed) if units is None else units
    folder = job_folder(job)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with only_writer(folder):
        if is_finished(folder):
            return existing(job, units)
        announce(folder, units, passed_over(job.data))
        identity = _tokenizer(job, units, folder)
        settings = _settings(job, folder, identity)
        results = run_units(units, settings, tasks)
        manifest = _manifest(job, folder, settings, results, tasks)
        remove_leftovers(folder, manifest, len(units))
        write_manifest(folder, manifest)
    prepared = load_prepared(folder)
    summarise(prepared, results, time.monotonic() - started)
    return prepared


def _reading(job: PrepareJob) -> Reading:
    validation = job.data.validation
    return Reading(job.data.text_column, validation.group_column, validation.fraction, job.seed)


def _settings(job: PrepareJob, folder: Path, identity: TokenizerIdentity) -> Settings:
    return Settings(
        folder=str(folder),
        reading=_reading(job),
        tokenizer=identity,
        end_of_text=tokenizers_room.end_of_text_of(job.tokenizer),
        sequence_length=job.data.sequence_length,
        row_group_rows=job.data.row_group_rows,
    )


def _tokenizer(job: PrepareJob, units: Sequence[Unit], folder: Path) -> TokenizerIdentity:
    """Load or train, unless an earlier try from the same inputs has done so already."""
    target = folder / TOKENIZER_FOLDER
    config = job.tokenizer
    if config.path is not None:
        end_of_text = tokenizers_room.end_of_text_of(config)
        loaded = tokenizers_room.load(Path(config.path), end_of_text)
        tokenizers_room.save(loaded, target, end_of_text, Path(config.path))
        return tokenizers_room.identity(loaded, end_of_text)
    plan = [[asdict(piece) for piece in unit] for unit in units]
    digest = sha256_text(
        canonical_json(
            {"plan": plan, "tokenizer": asdict(config), "reading": asdict(_reading(job))}
        )
    )
    sidecar = folder / UNITS_FOLDER / "tokenizer.json"
    try:
        earlier = json.loads(read_text(sidecar))
        identity = TokenizerIdentity.from_tree(earlier["identity"])
        found = tokenizer_fingerprint(target / "tokenizer.json")
        if earlier["digest"] == digest and found == identity.fingerprint:
            return identity
    except (*MISSING, ValueError, KeyError, TypeError, DataError):
        pass  # nothing usable from an earlier try: train
    identity = train_tokenizer(units, _reading(job), config, target)
    sidecar.parent.mkdir(exist_ok=True)
    write_atomic(sidecar, canonical_json({"digest": digest, "identity": asdict(identity)}))
    return identity


def _manifest(
    job: PrepareJob,
    folder: Path,
    settings: Settings,
    results: Sequence[UnitResult],
    tasks: int | None,
) -> Manifest:
    """Judge the results as a whole and put them together."""
    bad = judged_bad_inputs(job.data, results)
    splits = {
        name: Split.of(tuple(r.shards[name] for r in results if name in r.shards))
        for name in ("train", "validation")
    }
    if not splits["validation"].rows:
        what = "no usable record fell into the validation split"
        raise DataError(no_held_out_message(what, job.data.validation.group_column))
    if not splits["train"].rows:
        raise DataError("There is no usable training text: every record is bad, empty or held out.")
    return Manifest(
        format_version=FORMAT_VERSION,
        name=job.data.name,
        sequence_length=job.data.sequence_length,
        row_group_rows=job.data.row_group_rows,
        dtype=dtype_for(settings.tokenizer.vocab_size),
        tokenizer=settings.tokenizer,
        splits=splits,
        inputs=tuple(entry for result in results for entry in result.inputs),
        documents=sum(result.documents for result in results),
        bad_inputs=bad,
        contamination=measure_contamination(folder, splits, settings, tasks),
        config=shaping_config(job.data, job.tokenizer, job.seed),
    )
