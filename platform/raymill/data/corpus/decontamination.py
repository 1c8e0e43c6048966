"""Decontamination: documents that share an n-gram of words with an evaluation set are left out.

N-grams of words in lower case as in GPT-3 (Brown et al. 2020, appendix C) and datatrove's decontamination,
with its back-off: an n-gram that many documents have is a common phrase. Where more than `max_share` of a
source's documents would go, its most frequent n-grams don't count there, and the report names them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from raymill.data.corpus.bitmap import write_bitmap
from raymill.data.corpus.deduplication.sorted_rows import Rows
from raymill.data.corpus.deduplication.words import hash_words
from raymill.data.corpus.documents import DocumentsFile, read_batches
from raymill.data.corpus.evaluation_texts import EvaluationNgrams
from raymill.data.corpus.stages import Stage, StageUnit, UnitFiles, run_stage
from raymill.data.corpus.store import CorpusStore, StoredFile
from raymill.data.store.hashing import Ints
from raymill.durable import JsonObject, canonical_json, sha256_json

VERSION = 1
FOLDER = "decontamination"
# An n-gram (its place among the evaluation's) that a row has.
HIT = np.dtype([("row", "<u4"), ("ngram", "<u4")])
# N-grams that don't count which the report names, for each source; and documents hashed at once.
_NAMED = 20
_BATCH = 512


@dataclass(frozen=True)
class Decontamination:
    """Result: a bitmap for each unit, a list of hits for each unit (`.jsonl`), and counts as JSON values."""

    keep: tuple[StoredFile, ...]
    hits: tuple[StoredFile, ...]
    facts: JsonObject


@dataclass(frozen=True)
class _Limits:
    """Settings that the later stages share. `counting`: which n-grams count, for each source by name."""

    evaluation: EvaluationNgrams
    documents: tuple[DocumentsFile, ...]
    max_share: float
    found: tuple[StoredFile, ...]
    counting: StoredFile | None = None

    @property
    def sources(self) -> list[str]:
        """Names of the sources, sorted."""
        return sorted({file.source for file in self.documents})


def decontaminate(
    store: CorpusStore,
    documents: Sequence[DocumentsFile],
    evaluation: EvaluationNgrams,
    max_share: float,
    *,
    tasks: int | None = None,
) -> Decontamination:
    """Find the documents of all units that contain evaluation texts.

    Returns:
        `facts` has by source: `dropped`, and `common` (n-grams that don't count, by the text they are of);
        and `short`, the number of evaluation texts that are too short to be looked for.
    """
    parameters: JsonObject = {"evaluation": evaluation.digest}
    finding = Stage(f"{FOLDER}/found", VERSION, parameters)
    units = [StageUnit(file.unit, file.sha256, file) for file in documents]
    found = run_stage(store, finding, units, _find_unit, evaluation, tasks=tasks)
    files = [outcome.files[0] for outcome in sorted(found, key=lambda outcome: outcome.index)]
    parameters = {**parameters, "max_share": max_share}
    shared = _Limits(evaluation, tuple(documents), max_share, tuple(files))
    inputs = sha256_json([[asdict(file) for file in documents], [f.sha256 for f in files]])
    limits = Stage(f"{FOLDER}/limits", VERSION, parameters)
    [limited] = run_stage(
        store, limits, [StageUnit("all", inputs, None)], _limit, shared, tasks=tasks
    )
    shared = _Limits(evaluation, tuple(documents), max_share, tuple(files), limited.files[0])
    choosing = Stage(f"{FOLDER}/keep", VERSION, parameters)
    chosen = run_stage(
        store,
        choosing,
        [StageUnit(file.unit, inputs, number) for number, file in enumerate(documents)],
        _choose_unit,
        shared,
        tasks=tasks,
    )
    outcomes = sorted(chosen, key=lambda outcome: outcome.index)
    dropped: Counter[str] = Counter()
    for file, outcome in zip(documents, outcomes, strict=True):
        dropped[file.source] += outcome.facts["dropped"]
    return Decontamination(
        tuple(outcome.file(".bits") for outcome in outcomes),
        tuple(outcome.file(".jsonl") for outcome in outcomes),
        {"dropped": dict(sorted(dropped.items())), "short": evaluation.short, **limited.facts},
    )


def _find_unit(item: DocumentsFile, evaluation: EvaluationNgrams, files: UnitFiles) -> JsonObject:
    """Write the n-grams of an evaluation set that the unit's documents have."""
    path = files.read(item.stored)
    row = 0
    with files.new(f"{FOLDER}/found/{item.unit}.bin").open("wb") as stream:
        for texts in _text_batches(path):
            grams, starts = hash_words(texts).ngrams(evaluation.n)
            place = np.searchsorted(evaluation.hashes, grams)
            place[place == len(evaluation.hashes)] = 0
            at = np.flatnonzero(evaluation.hashes[place] == grams)
            hits = np.empty(len(at), dtype=HIT)
            hits["row"] = np.searchsorted(starts, at, side="right") - 1 + row
            hits["ngram"] = place[at]
            stream.write(np.unique(hits).tobytes())
            row += len(texts)
    return {}


def _text_batches(path: Path) -> Iterator[list[str]]:
    for batch in read_batches(path, ["text"]):
        for begin in range(0, batch.num_rows, _BATCH):
            yield batch.column(0).slice(begin, _BATCH).to_pylist()


def _limit(item: None, shared: _Limits, files: UnitFiles) -> JsonObject:
    """Write which n-grams count in each source, and name those that don't.

    Returns:
        `common` by source: n-grams that don't count, with the number of documents that have them.
    """
    counting = np.ones((len(shared.sources), len(shared.evaluation.hashes)), dtype=np.bool_)
    common: JsonObject = {}
    for number, source in enumerate(shared.sources):
        own = [
            (file, found)
            for file, found in zip(shared.documents, shared.found, strict=True)
            if file.source == source
        ]
        counts = np.zeros(counting.shape[1], dtype=np.int64)
        for _, found in own:
            counts += np.bincount(_read_hits(files, found)["ngram"], minlength=len(counts))
        rarest: Counter[int] = Counter()
        for _, found in own:
            rarest.update(_rarest(_read_hits(files, found), counts).tolist())
        limit = int(np.ceil(shared.max_share * sum(file.rows for file, _ in own)))
        counting[number] = counts <= _most(rarest, limit)
        often = np.flatnonzero(~counting[number])
        order = often[np.argsort(-counts[often], kind="stable")][:_NAMED]
        if len(order):
            common[source] = [
                {"documents": int(counts[place]), **_named(shared.evaluation, int(place))}
                for place in order
            ]
    files.new(f"{FOLDER}/limits/counting.bin").write_bytes(counting.tobytes())
    return {"common": common}


def _most(rarest: Counter[int], limit: int) -> int:
    """Return the largest frequency of n-grams that count, so that at most `limit` documents have one.

    `rarest`: frequency of a document's rarest n-gram → number of documents.
    """
    most = total = 0
    for frequency in sorted(rarest):
        total += rarest[frequency]
        if total > limit:
            return most
        most = frequency
    return int(np.iinfo(np.int64).max)


def _rarest(hits: Rows, counts: Ints) -> Ints:
    """Return the frequency of the rarest n-gram of each row that has hits."""
    if not len(hits):
        return counts[:0]
    first = np.unique(hits["row"], return_index=True)[1]
    rarest: Ints = np.minimum.reduceat(counts[hits["ngram"]], first)
    return rarest


def _choose_unit(unit: int, shared: _Limits, files: UnitFiles) -> JsonObject:
    """Write a unit's bitmap, and a line for each document that is left out."""
    assert shared.counting is not None, "it is known what counts before units are chosen"
    file = shared.documents[unit]
    every = np.fromfile(files.read(shared.counting), dtype=np.bool_)
    counting = every.reshape(len(shared.sources), -1)[shared.sources.index(file.source)]
    hits = _read_hits(files, shared.found[unit])
    hits = hits[counting[hits["ngram"]]]
    rows, first = np.unique(hits["row"], return_index=True)
    keep = np.ones(file.rows, dtype=np.bool_)
    keep[rows] = False
    write_bitmap(files.new(f"{FOLDER}/keep/{file.unit}.bits"), keep)
    ngrams = dict(zip(rows.tolist(), hits["ngram"][first].tolist(), strict=True))
    with files.new(f"{FOLDER}/keep/{file.unit}.jsonl").open("w", encoding="utf-8") as stream:
        row = 0
        path = files.read(file.stored)
        for batch in read_batches(path, ["url", "file", "offset"]) if ngrams else ():
            for document in batch.to_pylist():
                if row in ngrams:
                    line = {**document, **_named(shared.evaluation, ngrams[row])}
                    stream.write(canonical_json(line) + "\n")
                row += 1
    return {"dropped": len(rows)}


def _read_hits(files: UnitFiles, found: StoredFile) -> Rows:
    return np.fromfile(files.read(found), dtype=HIT)


def _named(evaluation: EvaluationNgrams, ngram: int) -> JsonObject:
    """Name the evaluation text that has an n-gram."""
    text = int(evaluation.text[ngram])
    return {"evaluation": evaluation.names[text], "text": evaluation.starts[text]}
