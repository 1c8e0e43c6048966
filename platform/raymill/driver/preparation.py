"""Preparation of data on the driver: text, messages for a parent model, or a classifier of quality."""

from __future__ import annotations

from pathlib import Path

from raymill.cluster.session import connect
from raymill.data.corpus import quality_job
from raymill.data.corpus.clean import as_json, steps_of
from raymill.data.corpus.prepare import MANIFEST as CORPUS_MANIFEST
from raymill.data.corpus.preview import preview
from raymill.data.corpus.store import CorpusStore
from raymill.data.kinds import kind_of, preparation_of
from raymill.data.messages.tokenizer import ChatTokenizer, chat_tokenizer
from raymill.data.sources.documents import DocumentParser
from raymill.data.sources.planning import plan_units
from raymill.data.store.location import corpus_folder, mixture_folders
from raymill.data.store.manifest import MANIFEST_NAME, PreparedData
from raymill.data.text import prepare as text
from raymill.data.text.estimate import estimate
from raymill.data.text.report import say
from raymill.durable import write_atomic
from raymill.report.corpus import corpus_page
from raymill.report.corpus_samples import read_samples
from raymill.schema.data_sections import RowsConfig
from raymill.schema.jobs import MessagesPrepareJob, PrepareJob
from raymill.schema.quality import QualityJob
from raymill.schema.storage import StorageConfig
from raymill.storage.mirror import download_folder, upload_folder
from raymill.track.registry import resolve_model


def describe_preparation(job: PrepareJob | MessagesPrepareJob | QualityJob) -> str:
    """Describe the data that a job would prepare; nothing is started or written.

    Raises:
        RaymillError: the parent can't be loaded, or the input is missing.
    """
    if isinstance(job, PrepareJob):
        return text.describe(job)
    if isinstance(job, QualityJob):
        return quality_job.describe(job)
    return preparation_of(job, _tokenizer(job)).describe()


def prepare(job: PrepareJob | MessagesPrepareJob | QualityJob) -> None:
    """Prepare a job's data, and show the first of it where that is asked for.

    Raises:
        RaymillError: the parent can't be loaded, or the input is missing or too bad.
    """
    if isinstance(job, PrepareJob):
        if job.preview:
            _preview(job)
        elif job.estimate:
            _print_estimate(job)
        else:
            text.run(job)
            if job.data.has_corpus:
                _report_corpus(job)
        return
    if isinstance(job, QualityJob):
        quality_job.run(job)
        return
    prepared = prepared_messages(job, _tokenizer(job))
    if job.preview:
        kind_of(job.data).preview(prepared, job.preview)


def _preview(job: PrepareJob) -> None:
    """Show documents before and after each step of cleaning; nothing is written."""
    data, seed = job.data, job.seed
    parser = DocumentParser(data.text_column, None, 0.0, seed)
    steps = steps_of(as_json(data.cleaning))
    for line in preview(plan_units(data, seed), parser, steps, job.preview, seed):
        say(line)


def _report_corpus(job: PrepareJob) -> None:
    """Write the page of the job's corpus into its folder."""
    folder = corpus_folder(job.data, job.storage.folder).absolute()
    store = CorpusStore.of(job.storage, folder)
    manifest = store.read_json(CORPUS_MANIFEST)
    assert manifest is not None, "a prepared corpus has a manifest"
    page = corpus_page(manifest, [*job.data.cleaning], read_samples(folder))
    write_atomic(folder / "report.html", page)
    store.upload("report.html")
    say(f"Report: {folder / 'report.html'}")


def _print_estimate(job: PrepareJob) -> None:
    import ray

    with connect(job.cluster):
        estimated = estimate(job)
        cores = float(ray.cluster_resources().get("CPU", 1.0))
    for line in estimated.lines(cores, job.core_hour_price):
        say(line)


def _tokenizer(job: MessagesPrepareJob) -> ChatTokenizer:
    parent = resolve_model(job.parent, job.tracking, job.storage.folder, key="parent").folder
    return chat_tokenizer(parent, job.data.template, job.data.special_tokens)


def prepared_messages(job: MessagesPrepareJob, tokenizer: ChatTokenizer) -> PreparedData:
    """Return the prepared folder, made now unless it exists. Ray is started for it unless it runs already."""
    preparation = preparation_of(job, tokenizer)
    download_folder(job.storage, preparation.folder, MANIFEST_NAME)
    # Ray is only started where there is something to prepare.
    prepared = preparation.find()
    if prepared is None:
        with connect(job.cluster):
            prepared = preparation.run()
    # Also where it was found: an earlier upload may have failed.
    upload_folder(job.storage, preparation.folder, MANIFEST_NAME)
    return prepared


def fetched_mixture(data: RowsConfig, storage: StorageConfig) -> dict[Path, float]:
    """Return prepared folder → weight of `data.mixture`, downloaded if an object store has them."""
    folders = mixture_folders(data, storage.folder)
    for folder in folders:
        download_folder(storage, folder, MANIFEST_NAME)
    return folders
