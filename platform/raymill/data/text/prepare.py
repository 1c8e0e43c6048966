"""Prepare raw text as a folder: a tokenizer, tokenized shards, and the manifest that vouches for
them.

The order makes a kill harmless: the tokenizer first, then shards with a sidecar each, the manifest
last. Files without a manifest only save work for the next try.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from raymill.data.corpus.funnel import funnel, stages_of
from raymill.data.corpus.prepare import find_corpus, prepare_corpus
from raymill.data.sources.documents import DocumentParser
from raymill.data.sources.files import passed_over
from raymill.data.sources.held_out import no_held_out_message
from raymill.data.sources.inputs import Unit
from raymill.data.sources.planning import plan_units
from raymill.data.store.facts import TextFacts
from raymill.data.store.location import corpus_folder, prepared_folder, shaping_config
from raymill.data.store.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    TOKENIZER_FOLDER,
    DataManifest,
    PreparedData,
    Split,
    TokenizerIdentity,
    check_shard_sizes,
    is_finished,
    load_prepared,
    tokenizer_fingerprint,
    write_manifest,
)
from raymill.data.store.pack import dtype_for, row_group_rows
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.store.tables import Table, TableFile
from raymill.data.text import tokenizer as text_tokenizer
from raymill.data.text.engines import check_engine
from raymill.data.text.fertility import Fertility
from raymill.data.text.inputs_check import refuse_changed_inputs
from raymill.data.text.live import LIVE_FOLDER
from raymill.data.text.report import announce, announce_existing, describe_plan, say, summarize
from raymill.data.text.runs import RUNS_FOLDER, Run
from raymill.data.text.shard_packer import PackedShard, PackingCounts
from raymill.data.text.shuffle import BucketSettings, buckets_of
from raymill.data.text.steps import (
    check_bad_inputs,
    lock_prepared_folder,
    remove_leftovers,
    run_units,
)
from raymill.data.text.tasks import measure_contamination, pack_buckets, train_tokenizer
from raymill.data.text.text_unit import Settings
from raymill.data.text.unit import UNITS_FOLDER, UnitResult
from raymill.durable import canonical_json, sha256_text, write_atomic
from raymill.errors import DataError
from raymill.reading import MISSING, is_folder, read_text
from raymill.schema.jobs import PrepareJob
from raymill.storage.mirror import download_folder, upload_folder


def run(job: PrepareJob) -> PreparedData:
    """Prepare a job's data, or open it if it is prepared already.

    Raises:
        DataError: the input is missing or too bad, or the folder has unexpected contents.
    """
    from raymill.cluster.session import connect

    folder = job_folder(job)
    download_folder(job.storage, folder, MANIFEST_NAME)
    # Inputs of any number are planned on the cluster; others are checked before one is started.
    many = job.data.sources or job.data.has_corpus
    units = None if many and not is_finished(folder) else plan_units(job.data, job.seed)
    corpus = find_corpus(job, units) if units is not None and job.data.has_corpus else None
    if units is not None and is_finished(folder) and (corpus or not job.data.has_corpus):
        prepared = existing(job, units if corpus is None else corpus.units())
    else:
        with connect(job.cluster):
            prepared = prepare_with_ray(job, units)
    upload_folder(job.storage, folder, MANIFEST_NAME)
    return prepared


def describe(job: PrepareJob) -> str:
    """Describe the input and output of `run`, for a dry run; no text is read."""
    folder = job_folder(job)
    units = plan_units(job.data, job.seed)
    state = "finished" if is_finished(folder) else "not finished"
    if job.data.has_corpus:
        return f"{_describe_corpus(job, units)}, tokenized → {folder} ({state})"
    return f"{describe_plan(units, passed_over(job.data))} → {folder} ({state})"


def job_folder(job: PrepareJob) -> Path:
    """Return the folder of this job's data."""
    return prepared_folder(job.data, job.tokenizer, job.seed, job.storage.folder).absolute()


def existing(job: PrepareJob, units: Sequence[Unit]) -> PreparedData:
    """Verify and open the finished folder; raise DataError if its inputs have changed."""
    prepared = load_prepared(job_folder(job))
    check_shard_sizes(prepared)
    settings = _settings(job, units, prepared.folder, prepared.manifest.tokenizer)
    # Of a folder from before documents were shuffled, too.
    shuffled = prepared.manifest.config["data"].get("shuffle_documents", False)
    settings = replace(settings, shuffle_documents=shuffled)
    _remove_runs(prepared.folder)
    refuse_changed_inputs(prepared, units, settings, **_advice(job))
    if job.tokenizer.path is not None:
        file = Path(job.tokenizer.path)
        # The folder's name carries the tokenizer's path, not its contents, which may have changed.
        loaded = text_tokenizer.load(file, text_tokenizer.end_of_text_of(job.tokenizer))
        if text_tokenizer.fingerprint(loaded) != prepared.manifest.tokenizer.fingerprint:
            raise DataError(
                f"{prepared.folder} was prepared with another tokenizer than {file} holds now; "
                "give the data another data.name, or delete that folder if no run needs it."
            )
    announce_existing(prepared, in_file_order=job.data.shuffle_documents and not shuffled)
    return prepared


def _advice(job: PrepareJob) -> dict[str, str]:
    """Tell how what is cleaned already serves the new text."""
    if not job.data.has_corpus:
        return {}
    corpus = job.data.corpus or job.data.name
    return {
        "advice": f"give the new text another data.name, with data.corpus={corpus} so that only new "
        "files are cleaned"
    }


def prepare_with_ray(
    job: PrepareJob, units: Sequence[Unit] | None = None, *, tasks: int | None = None
) -> PreparedData:
    """Prepare on a running Ray; at most `tasks` units at once (None: one per core)."""
    units = plan_units(job.data, job.seed) if units is None else units
    folder = job_folder(job)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if job.data.has_corpus:
        units = _corpus_units(job, units, tasks)
    with lock_prepared_folder(folder):
        if is_finished(folder):
            return existing(job, units)
        # The lock is held from here on, so no other preparation writes this folder.
        announce(folder, units, passed_over(job.data))
        check_engine(job.tokenizer.engine)
        identity = _tokenizer(job, units, folder)
        settings = _settings(job, units, folder, identity)
        results = run_units(units, settings, tasks)
        manifest = _manifest(job, folder, settings, results, tasks)
        remove_leftovers(folder, manifest, len(units))
        write_manifest(folder, manifest)
        _remove_runs(folder)
    prepared = load_prepared(folder)
    summarize(prepared, results, time.monotonic() - started)
    return prepared


def _corpus_units(job: PrepareJob, units: Sequence[Unit], tasks: int | None) -> list[Unit]:
    """Prepare the corpus that the units are the input of; return the units of its documents."""
    say(f"Preparing {_describe_corpus(job, units)}")
    corpus = prepare_corpus(job, units, tasks=tasks)
    for line in funnel(corpus):
        say(line)
    corpus.fetch(tasks)
    return corpus.units()


def _describe_corpus(job: PrepareJob, units: Sequence[Unit]) -> str:
    folder = corpus_folder(job.data, job.storage.folder).absolute()
    plan = describe_plan(units, passed_over(job.data))
    return f"{plan} → {stages_of(job.data)} → {folder}"


def _remove_runs(folder: Path) -> None:
    """Delete the encoded documents that the finished shards were made of, and notes of progress."""
    for name in (RUNS_FOLDER, LIVE_FOLDER):
        if is_folder(folder / name):
            shutil.rmtree(folder / name)


def _parser(job: PrepareJob) -> DocumentParser:
    validation = job.data.validation
    return DocumentParser(
        job.data.text_column, validation.group_column, validation.fraction, job.seed
    )


def _settings(
    job: PrepareJob, units: Sequence[Unit], folder: Path, identity: TokenizerIdentity
) -> Settings:
    return Settings(
        folder=str(folder),
        reading=_parser(job),
        tokenizer=identity,
        end_of_text=text_tokenizer.end_of_text_of(job.tokenizer),
        sequence_length=job.data.sequence_length,
        row_group_rows=job.data.row_group_rows or _rows_by_bytes(job, units, identity),
        shuffle_documents=job.data.shuffle_documents,
        packing=job.data.packing,
        engine=job.tokenizer.engine,
    )


def _rows_by_bytes(job: PrepareJob, units: Sequence[Unit], identity: TokenizerIdentity) -> int:
    dtype = np.dtype(dtype_for(identity.vocab_size))
    corpus = sum(span.length for unit in units for span in unit)
    row_bytes = (job.data.sequence_length + 1) * dtype.itemsize
    return row_group_rows(row_bytes, job.data.shard_input_bytes, corpus)


def _packed(results: Sequence[UnitResult], split: str) -> list[PackedShard]:
    """Return what the units have packed of a split."""
    packed = [result.facts["packed"] for result in results]
    return [PackedShard.from_tree(splits[split]) for splits in packed if split in splits]


def _train_shards(
    job: PrepareJob, settings: Settings, results: Sequence[UnitResult], tasks: int | None
) -> list[PackedShard]:
    """Return the units' training shards, or those that their documents are shuffled into."""
    if not settings.shuffle_documents:
        return _packed(results, TRAIN)
    runs = tuple(Run(**tree) for result in results for tree in result.facts["runs"])
    shared = BucketSettings(rows=settings.rows(TRAIN), runs_folder=settings.folder, runs=runs)
    return pack_buckets(buckets_of(runs, job.data.shard_input_bytes), shared, tasks)


def _tokenizer(job: PrepareJob, units: Sequence[Unit], folder: Path) -> TokenizerIdentity:
    """Load or train the tokenizer, unless an earlier try from the same inputs has done so."""
    target = folder / TOKENIZER_FOLDER
    config = job.tokenizer
    if config.path is not None:
        end_of_text = text_tokenizer.end_of_text_of(config)
        loaded = text_tokenizer.load(Path(config.path), end_of_text)
        text_tokenizer.save(loaded, target, end_of_text, Path(config.path))
        return text_tokenizer.identity(loaded, end_of_text)
    # The tokenizer depends on the plan, since its training text is a sample of the units.
    plan = [[span.to_tree() for span in unit] for unit in units]
    digest = sha256_text(
        canonical_json({"plan": plan, "tokenizer": asdict(config), "reading": asdict(_parser(job))})
    )
    sidecar = folder / UNITS_FOLDER / "tokenizer.json"
    try:
        earlier = json.loads(read_text(sidecar))
        identity = TokenizerIdentity.from_tree(earlier["identity"])
        saved_fingerprint = tokenizer_fingerprint(target / "tokenizer.json")
        if earlier["digest"] == digest and saved_fingerprint == identity.fingerprint:
            return identity
    # Without a usable tokenizer from an earlier try, one is trained.
    except (*MISSING, ValueError, KeyError, TypeError, DataError):
        pass
    identity = train_tokenizer(units, _parser(job), config, target)
    sidecar.parent.mkdir(exist_ok=True)
    write_atomic(sidecar, canonical_json({"digest": digest, "identity": asdict(identity)}))
    return identity


def _manifest(
    job: PrepareJob,
    folder: Path,
    settings: Settings,
    results: Sequence[UnitResult],
    tasks: int | None,
) -> DataManifest:
    """Check the results as a whole and assemble the manifest."""
    bad = check_bad_inputs(job.data, results)
    packed = {
        TRAIN: _train_shards(job, settings, results, tasks),
        VALIDATION: _packed(results, VALIDATION),
    }
    splits = {
        split: Split.from_shards(one.shard for one in shards) for split, shards in packed.items()
    }
    if not splits["validation"].rows:
        what = "no usable record fell into the validation split"
        raise DataError(no_held_out_message(what, job.data.validation.group_column))
    if not splits["train"].rows:
        raise DataError("There is no usable training text: every record is bad, empty or held out.")
    return DataManifest(
        format_version=FORMAT_VERSION,
        name=job.data.name,
        sequence_length=job.data.sequence_length,
        row_group_rows=settings.row_group_rows,
        dtype=dtype_for(settings.tokenizer.vocab_size),
        tokenizer=settings.tokenizer,
        splits=splits,
        inputs=tuple(entry for result in results for entry in result.inputs),
        documents=sum(result.documents for result in results),
        bad_inputs=bad,
        contamination=measure_contamination(folder, splits, settings, tasks),
        config=shaping_config(job.data, job.tokenizer, job.seed),
        text=_text_facts(results, packed),
    )


def _text_facts(
    results: Sequence[UnitResult], packed: Mapping[str, Sequence[PackedShard]]
) -> TextFacts:
    shards = [one for split in packed.values() for one in split]
    return TextFacts(
        fertility=Fertility.total(result.facts["fertility"] for result in results).to_json(),
        packing={
            split: PackingCounts.total(one.counts for one in of_split).to_json()
            for split, of_split in packed.items()
        },
        lineage=Table.of(TableFile, (one.lineage for one in shards)),
    )
