"""First stage of a corpus: the records of a unit's inputs, cleaned step by step, become documents.

A unit leaves `documents/<unit>.parquet`, `inputs/<unit>.arrow` (the digests of what it read) and
`samples/<unit>.jsonl` (some of the documents that were dropped or changed); its facts are counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from raymill.data.corpus.cleaning.declared import Declarations, declared_steps
from raymill.data.corpus.cleaning.step import DeclaredStep
from raymill.data.corpus.counts import SourceCounts
from raymill.data.corpus.documents import CorpusDocument, DocumentsWriter
from raymill.data.corpus.draft import Draft
from raymill.data.corpus.stages import UnitFiles
from raymill.data.sources.documents import Document, DocumentParser
from raymill.data.sources.format import Bad, Skipped
from raymill.data.sources.inputs import InputRange, Unit
from raymill.data.sources.records import read_records
from raymill.data.store.manifest import InputDigest
from raymill.data.store.split import VALIDATION, hash_fraction
from raymill.data.store.tables import Table
from raymill.durable import JsonObject, canonical_json

VERSION = 1
# Bad records that a unit names.
NAMED_BAD = 20
# Changed documents that a unit shows, and the characters that are shown of each.
EXAMPLES = 2
SHOWN = 4000
# Documents without text are dropped under this name, before the first step or after one.
EMPTY = "empty"


@dataclass(frozen=True)
class CleanSettings:
    """Settings that all units share; `cleaning` is `data.cleaning` as JSON, in the order of its steps."""

    reading: DocumentParser
    cleaning: str
    keep_rejects: float
    seed: int


def as_json(cleaning: Declarations) -> str:
    """Return `data.cleaning` as JSON that keeps the order of its steps."""
    return json.dumps({name: dict(entry) for name, entry in cleaning.items()})


@lru_cache(maxsize=2)
def steps_of(cleaning: str) -> tuple[DeclaredStep, ...]:
    """Return the steps of `as_json`; a process makes them once, since some load models."""
    problems: list[str] = []
    steps = declared_steps(json.loads(cleaning), problems)
    assert not problems, f"the configuration was checked before, but: {problems}"
    return steps


def clean_draft(
    draft: Draft,
    steps: tuple[DeclaredStep, ...],
    on_change: Callable[[str, str], None] = lambda step, before: None,
) -> tuple[str, str] | None:
    """Apply the steps; return the step that dropped the draft and its reason, or None.

    `on_change` is called with a step that has changed the text, and the text before it.
    """
    if not draft.text.strip():
        return EMPTY, EMPTY
    for step in steps:
        before = draft.text
        reason = step.clean(draft)
        if reason is not None:
            return step.key, reason
        if draft.text is not before and draft.text != before:
            on_change(step.key, before)
            if not draft.text.strip():
                return step.key, EMPTY
    return None


def clean_unit(item: tuple[str, Unit], settings: CleanSettings, files: UnitFiles) -> JsonObject:
    """Read and clean the input ranges of the unit with this name.

    Returns:
        `records`, `bad` and `bad_examples`; `rows`, `text_bytes`, `source` and `held_out` of the file of
        documents; `sources`: `SourceCounts` by source.

    Raises:
        DataError: an input is gone, has changed, or is damaged beyond single records.
    """
    name, unit = item
    documents = files.new(f"documents/{name}.parquet")
    run = _CleanRun(settings)
    with ExitStack() as stack:
        writer = stack.enter_context(DocumentsWriter(documents))
        for span in unit:
            for document in run.read(span):
                kept = run.clean(span, document)
                if kept is not None:
                    writer.add(kept)
    inputs = files.new(f"inputs/{name}.arrow")
    Table.of(InputDigest, run.inputs).write(inputs.parent, inputs.name)
    _write_lines(files.new(f"samples/{name}.jsonl"), [*run.rejects, *run.examples()])
    return {
        "records": run.records,
        "bad": run.bad,
        "bad_examples": run.bad_examples,
        "rows": writer.rows,
        "text_bytes": writer.text_bytes,
        "source": unit[0].source.name,
        "held_out": unit[0].split == VALIDATION,
        "sources": {source: counts.to_json() for source, counts in run.counts.items()},
    }


@dataclass
class _CleanRun:
    """Counters and samples of a running unit."""

    settings: CleanSettings
    records: int = 0
    bad: int = 0
    bad_examples: list[str] = field(default_factory=list)
    inputs: list[InputDigest] = field(default_factory=list)
    counts: dict[str, SourceCounts] = field(default_factory=dict)
    rejects: list[JsonObject] = field(default_factory=list)
    # The changed documents of smallest hash, with that hash.
    changed: list[tuple[float, JsonObject]] = field(default_factory=list)

    def read(self, span: InputRange) -> Iterator[Document]:
        """Yield the usable records of an input range."""
        digest = hashlib.sha256()
        counts = self.counts.setdefault(span.source.name, SourceCounts())
        for record in read_records(span, self.settings.reading, digest):
            if isinstance(record, Skipped):
                counts.pass_over(record.cause)
            elif isinstance(record, Bad):
                self.records += record.count
                self.bad += record.count
                counts.bad += record.count
                if len(self.bad_examples) < NAMED_BAD:
                    self.bad_examples.append(f"{record.where}: {record.why}")
            else:
                self.records += 1
                yield record
        self.inputs.append(InputDigest(span.name, span.offset, span.length, digest.hexdigest()))

    def clean(self, span: InputRange, document: Document) -> CorpusDocument | None:
        """Apply the steps to a document; None if it is dropped."""
        counts = self.counts[span.source.name]
        text, place = document.text, document.place
        counts.see(len(text))
        draft = Draft(text, document.source, document.url, document.language)
        dropped = clean_draft(
            draft, steps_of(self.settings.cleaning), lambda step, _: counts.change(step)
        )
        draw = hash_fraction(f"{span.name}@{place.offset}", self.settings.seed)
        if dropped is not None:
            counts.drop(*dropped, len(text))
            if draw < self.settings.keep_rejects:
                origin = _origin(span, document)
                self.rejects.append(
                    origin | {"step": dropped[0], "reason": dropped[1], "text": text[:SHOWN]}
                )
            return None
        counts.keep(len(draft.text), draft.language)
        if draft.text != text and (len(self.changed) < EXAMPLES or draw < self.changed[-1][0]):
            shown = {"before": text[:SHOWN], "after": draft.text[:SHOWN]}
            self.changed = sorted(
                [*self.changed, (draw, _origin(span, document) | shown)], key=lambda pair: pair[0]
            )[:EXAMPLES]
        return CorpusDocument(
            draft.text,
            document.source,
            draft.url,
            draft.language,
            span.name,
            place.offset,
            place.length,
            place.sha256 or hashlib.sha256(text.encode()).digest(),
            draft.signals,
            document.group,
        )

    def examples(self) -> list[JsonObject]:
        """Return documents that were kept with another text."""
        return [shown for _, shown in self.changed]


def _origin(span: InputRange, document: Document) -> JsonObject:
    return {
        "source": document.source,
        "url": document.url,
        "file": span.name,
        "offset": document.place.offset,
    }


def _write_lines(path: Path, objects: list[JsonObject]) -> None:
    with path.open("w", encoding="utf-8", errors="replace") as stream:
        for tree in objects:
            stream.write(canonical_json(tree) + "\n")
