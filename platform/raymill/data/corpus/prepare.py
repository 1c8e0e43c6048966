"""Prepare a corpus: the stages that documents pass before they are tokenized, each done once.

The folder `<storage root>/corpus/<name>-<digest>` is named by what the documents are read from and how they
are cleaned; it doesn't depend on the tokenizer, so several share it. Its `manifest.json` is written last and
vouches for every file; its digest depends on the inputs' contents and the configuration alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from raymill.data import cluster_tasks
from raymill.data.corpus.clean import (
    NAMED_BAD,
    CleanSettings,
    as_json,
    clean_unit,
    steps_of,
)
from raymill.data.corpus.clean import VERSION as CLEAN_VERSION
from raymill.data.corpus.cleaning.declared import described
from raymill.data.corpus.counts import add, refuse_greedy_steps
from raymill.data.corpus.decontamination import VERSION as DECONTAMINATION_VERSION
from raymill.data.corpus.decontamination import decontaminate
from raymill.data.corpus.deduplication.run import deduplicate
from raymill.data.corpus.deduplication.runner import VERSION as DEDUPLICATION_VERSION
from raymill.data.corpus.documents import DocumentsFile
from raymill.data.corpus.evaluation_texts import read_evaluation_texts
from raymill.data.corpus.selection import VERSION as SELECTION_VERSION
from raymill.data.corpus.selection import SelectionItem, SelectionSettings, select_unit
from raymill.data.corpus.stages import (
    Stage,
    StageUnit,
    UnitOutcome,
    remove_leftovers,
    run_stage,
    unit_name,
)
from raymill.data.corpus.store import CorpusStore, StoredFile
from raymill.data.corpus.takedown import VERSION as TAKEDOWN_VERSION
from raymill.data.corpus.takedown import read_takedown, take_down
from raymill.data.sources.documents import DocumentParser
from raymill.data.sources.files import find_files
from raymill.data.sources.held_out import no_held_out_message
from raymill.data.sources.inputs import InputRange, Unit
from raymill.data.store.facts import BadInputs, limited_bad_inputs
from raymill.data.store.location import corpus_config, corpus_folder
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.store.tables import Table, TableFile
from raymill.durable import JsonObject, exclusive_lock, sha256_json
from raymill.errors import DataError
from raymill.schema.data_sections import DataConfig
from raymill.schema.jobs import PrepareJob

T = TypeVar("T")

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
# What was asked for when the manifest was written.
REQUEST = "request.json"
# Documents of a source after which a step that drops too many of it ends the stage at once.
JUDGED_EARLY = 10_000


@dataclass(frozen=True)
class PreparedCorpus:
    """Finished corpus: its files of documents with their selections, in the order of their priority, and
    `manifest`, the contents of `manifest.json`."""

    store: CorpusStore
    documents: tuple[DocumentsFile, ...]
    selections: tuple[StoredFile, ...]
    manifest: JsonObject

    @property
    def digest(self) -> str:
        """Digest of the manifest."""
        return str(self.manifest["digest"])

    def units(self) -> list[Unit]:
        """Return a unit to tokenize for each file of documents, with bytes of text as its length."""
        return [
            (_span(self.store, documents, selection),)
            for documents, selection in zip(self.documents, self.selections, strict=True)
            if documents.rows
        ]

    def fetch(self, tasks: int | None = None) -> None:
        """Download what isn't in the folder of this machine, or of all machines that share it."""
        if self.store.uri is None:
            return
        files = [*(documents.stored for documents in self.documents), *self.selections]
        for _ in cluster_tasks.parallel(_fetch, files, shared=self.store, tasks=tasks):
            pass


def _fetch(file: StoredFile, store: CorpusStore) -> None:
    store.local(file)


def find_corpus(job: PrepareJob, units: Sequence[Unit]) -> PreparedCorpus | None:
    """Open the corpus if it is finished, and made of these units by this configuration; None if not.

    Files count by size and modification time; no other work is done.

    Raises:
        DataError: one of its tables is damaged.
    """
    store = CorpusStore.of(job.storage, corpus_folder(job.data, job.storage.folder).absolute())
    request, manifest = store.read_json(REQUEST), store.read_json(MANIFEST)
    if request is None or manifest is None or manifest.get("format_version") != FORMAT_VERSION:
        return None
    if request != {"request": _request(job, units), "digest": manifest["digest"]}:
        return None
    documents = _stored_table(store, DocumentsFile, manifest["documents"])
    selections = _stored_table(store, StoredFile, manifest["selections"])
    corpus = PreparedCorpus(store, documents, selections, manifest)
    stored = [*(file.stored for file in documents), *selections]
    return corpus if store.has(stored) else None


def _stored_table(store: CorpusStore, record: type[T], tree: JsonObject) -> tuple[T, ...]:
    file = TableFile(**tree)
    store.local(StoredFile(file.path, file.bytes, file.sha256))
    return tuple(Table.stored(record, Path(store.folder), file))


def _request(job: PrepareJob, units: Sequence[Unit]) -> str:
    """Return the digest of everything that a corpus is made of, with inputs by size and time."""
    inputs = hashlib.sha256()
    for unit in _Named(units):
        inputs.update(unit.inputs.encode())
    steps = steps_of(as_json(job.data.cleaning))
    return sha256_json(
        {
            "inputs": inputs.hexdigest(),
            "steps": [described(step) for step in steps],
            "limits": [step.max_dropped for step in steps],
            "config": corpus_config(job.data),
            "validation": asdict(job.data.validation),
            "bad": job.data.max_bad_fraction,
            "keep_rejects": job.data.keep_rejects,
            "seed": job.seed,
            "lists": _list_digests(job.data),
            "versions": [
                CLEAN_VERSION,
                DEDUPLICATION_VERSION,
                DECONTAMINATION_VERSION,
                TAKEDOWN_VERSION,
                SELECTION_VERSION,
            ],
        }
    )


def _list_digests(data: DataConfig) -> list[str]:
    """Return digests of the evaluation sets and takedown lists, whose paths say nothing of what they hold."""
    digests = []
    if data.takedown is not None:
        digests.append(read_takedown(data.takedown).digest)
    if data.decontamination.path is not None:
        files = find_files(data.decontamination.path, "data.decontamination.path")
        digests += [sha256_json(file.to_tree()) for file in files]
    return digests


def prepare_corpus(
    job: PrepareJob, units: Sequence[Unit], *, tasks: int | None = None
) -> PreparedCorpus:
    """Run the stages of a job's corpus on a running Ray, or find that they have been run.

    Raises:
        DataError: the input is missing or too bad, a step drops too much, or nothing is left.
    """
    folder = corpus_folder(job.data, job.storage.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    refusal = f"Another preparation is writing {folder} right now; wait for it or end it first."
    with exclusive_lock(folder, refusal):
        found = find_corpus(job, units)
        if found is not None:
            return found
        store = CorpusStore.of(job.storage, folder)
        corpus = _Stages(job, store, tasks).run(units)
        store.write_json(REQUEST, {"request": _request(job, units), "digest": corpus.digest})
        return corpus


@dataclass(frozen=True)
class _Stages:
    """Stages of one corpus."""

    job: PrepareJob
    store: CorpusStore
    tasks: int | None

    def run(self, units: Sequence[Unit]) -> PreparedCorpus:
        documents, facts = self._clean(units)
        bitmaps: list[list[StoredFile]] = [[] for _ in documents]
        data = self.job.data
        if data.deduplication.is_on:
            found = deduplicate(self.store, documents, data.deduplication, tasks=self.tasks)
            documents, facts["duplicates"] = [*found.documents], found.facts
            _add_bitmaps(bitmaps, found.keep)
        if data.decontamination.path is not None:
            section = data.decontamination
            evaluation = read_evaluation_texts(data.decontamination.path, section.ngram)
            cleared = decontaminate(
                self.store, documents, evaluation, section.max_share, tasks=self.tasks
            )
            facts["contaminated"] = cleared.facts
            _add_bitmaps(bitmaps, cleared.keep)
        if data.takedown is not None:
            listed = read_takedown(data.takedown)
            taken = take_down(self.store, documents, listed, tasks=self.tasks)
            facts["taken_down"] = taken.dropped
            _add_bitmaps(bitmaps, taken.keep)
        selections, splits = self._select(documents, bitmaps)
        facts["splits"] = splits
        manifest = self._write_manifest(documents, selections, facts)
        return PreparedCorpus(self.store, tuple(documents), tuple(selections), manifest)

    def _clean(self, units: Sequence[Unit]) -> tuple[list[DocumentsFile], JsonObject]:
        data, seed = self.job.data, self.job.seed
        declared = steps_of(cleaning := as_json(data.cleaning))
        validation = data.validation
        reading = DocumentParser(
            data.text_column, validation.group_column, validation.fraction, seed
        )
        parameters = {
            "steps": [described(step) for step in declared],
            "reading": {**asdict(reading), "fraction": 0},
            "keep_rejects": data.keep_rejects,
        }
        stage = Stage("clean", CLEAN_VERSION, parameters)
        settings = CleanSettings(reading, cleaning, data.keep_rejects, seed)
        limits = [(step.key, step.max_dropped) for step in declared if step.max_dropped < 1]
        total: JsonObject = {"records": 0, "bad": 0, "sources": {}}
        files: dict[int, DocumentsFile] = {}
        bad_examples: dict[int, list[str]] = {}
        for outcome in run_stage(
            self.store, stage, _Named(units), clean_unit, settings, tasks=self.tasks
        ):
            facts = outcome.facts
            files[outcome.index] = _documents_file(outcome)
            bad_examples[outcome.index] = facts["bad_examples"]
            add(total, {name: facts[name] for name in total})
            refuse_greedy_steps(total["sources"], limits, JUDGED_EARLY)
        refuse_greedy_steps(total["sources"], limits)
        named = [text for index in sorted(bad_examples) for text in bad_examples[index]]
        bad = BadInputs(total["bad"], tuple(named[:NAMED_BAD]))
        limited_bad_inputs(bad, total["records"], data.max_bad_fraction)
        documents = [files[index] for index in sorted(files)]
        names = {file.unit for file in documents}
        remove_leftovers(self.store, stage, names, ("documents", "inputs", "samples"))
        return documents, {**total, "bad_examples": list(bad.examples)}

    def _select(
        self, documents: Sequence[DocumentsFile], bitmaps: Sequence[Sequence[StoredFile]]
    ) -> tuple[list[StoredFile], JsonObject]:
        own_set = self.job.data.validation.path is not None
        # Documents are held out of the corpus where the user has no set for it.
        fraction = 0.0 if own_set else self.job.data.validation.fraction
        settings = SelectionSettings(fraction, self.job.seed)
        stage = Stage("selection", SELECTION_VERSION, asdict(settings))
        units = [
            StageUnit(
                file.unit,
                sha256_json([file.sha256, *(bitmap.sha256 for bitmap in keep)]),
                SelectionItem(file, tuple(keep)),
            )
            for file, keep in zip(documents, bitmaps, strict=True)
        ]
        selections: dict[int, StoredFile] = {}
        train, held_out = [0, 0], [0, 0]
        for outcome in run_stage(self.store, stage, units, select_unit, settings, tasks=self.tasks):
            [selections[outcome.index]] = outcome.files
            for sums, name in ((train, "train"), (held_out, "held_out")):
                sums[:] = [a + b for a, b in zip(sums, outcome.facts[name], strict=True)]
        if not train[0]:
            raise DataError(
                "No document is left to train on: every one is bad, dropped or held out."
            )
        if not held_out[0]:
            column = self.job.data.validation.group_column
            raise DataError(no_held_out_message("no document that is left fell into it", column))
        remove_leftovers(self.store, stage, {file.unit for file in documents}, ())
        splits = {
            name: {"documents": sums[0], "bytes": sums[1]}
            for name, sums in ((TRAIN, train), (VALIDATION, held_out))
        }
        return [selections[index] for index in sorted(selections)], splits

    def _write_manifest(
        self,
        documents: Sequence[DocumentsFile],
        selections: Sequence[StoredFile],
        facts: JsonObject,
    ) -> JsonObject:
        folder = Path(self.store.folder)
        tables = {
            "documents": Table.of(DocumentsFile, documents).write(folder, "documents.arrow"),
            "selections": Table.of(StoredFile, selections).write(folder, "selections.arrow"),
        }
        manifest = {
            "format_version": FORMAT_VERSION,
            "name": self.job.data.corpus or self.job.data.name,
            "config": corpus_config(self.job.data),
            **{name: asdict(file) for name, file in tables.items()},
            "facts": facts,
        }
        manifest["digest"] = sha256_json(manifest)
        for file in tables.values():
            self.store.upload(file.path)
        if self.store.read_json(MANIFEST) != manifest:
            self.store.write_json(MANIFEST, manifest)
        return manifest


def _add_bitmaps(bitmaps: Sequence[list[StoredFile]], found: Sequence[StoredFile | None]) -> None:
    for of_unit, bitmap in zip(bitmaps, found, strict=True):
        if bitmap is not None:
            of_unit.append(bitmap)


class _Named(Sequence[StageUnit[tuple[str, Unit]]]):
    """Units of the first stage, each made when it is asked for."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = units

    def __len__(self) -> int:
        return len(self._units)

    def __getitem__(self, index: int) -> StageUnit[tuple[str, Unit]]:  # type: ignore[override]
        unit = self._units[index]
        name = unit_name([[span.name, span.offset, span.length] for span in unit])
        inputs = sha256_json([span.to_tree() for span in unit])
        return StageUnit(name, inputs, (name, unit), sum(span.length for span in unit))

    def __iter__(self) -> Iterator[StageUnit[tuple[str, Unit]]]:
        return (self[index] for index in range(len(self)))


def _documents_file(outcome: UnitOutcome) -> DocumentsFile:
    facts, file = outcome.facts, outcome.file(".parquet")
    return DocumentsFile(
        file.path, facts["rows"], facts["text_bytes"], file.bytes, file.sha256, facts["source"],
        int(facts["held_out"]),
    )  # fmt: skip


def _span(store: CorpusStore, documents: DocumentsFile, selection: StoredFile) -> InputRange:
    path = store.path(documents.path)
    digest = sha256_json([documents.sha256, selection.sha256])
    size = documents.text_bytes
    return InputRange(
        f"{documents.path}@{digest[:16]}", str(path), "documents", TRAIN, 0, size, size, 0
    )
