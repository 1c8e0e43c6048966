"""Documents that contain evaluation texts, and phrases that are too common to count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data.documents_factory import write_documents
from data.in_process import without_ray
from raymill.data.corpus.bitmap import read_bitmap
from raymill.data.corpus.decontamination import Decontamination, decontaminate
from raymill.data.corpus.documents import DocumentsFile
from raymill.data.corpus.evaluation_texts import EvaluationNgrams, read_evaluation_texts
from raymill.data.corpus.store import CorpusStore
from raymill.errors import DataError

QUESTION = "Which river crosses the old town before it reaches the wide northern sea"
PHRASE = "all rights reserved by the owners of this page and its many contents"


def evaluation(folder: Path, n: int = 8) -> EvaluationNgrams:
    """N-grams of a set with a question, nested choices and a short answer."""
    path = folder / "evaluation.jsonl"
    path.write_text(
        json.dumps({"question": QUESTION, "choices": [{"text": PHRASE}, "the Elbe"], "label": 1})
        + "\n"
    )
    return read_evaluation_texts([str(path)], n)


def dropped(
    store: CorpusStore, files: list[DocumentsFile], result: Decontamination
) -> set[tuple[int, int]]:
    """Documents that the bitmaps leave out."""
    return {
        (unit, int(row))
        for unit, file in enumerate(files)
        for row in np.flatnonzero(~read_bitmap(store.local(result.keep[unit]), file.rows))
    }


def test_documents_with_evaluation_texts_are_dropped_and_listed(tmp_path: Path) -> None:
    found = QUESTION.upper().replace(" ", ",  ")
    seven = " ".join(QUESTION.split()[:7])
    units = [["Nothing here.", f"A quiz: {found}?"], [f"{seven} and {seven}", f"x {PHRASE}"]]
    store, files = write_documents(tmp_path, units, ["web", "books"])
    ngrams = evaluation(tmp_path)
    with without_ray():
        result = decontaminate(store, files, ngrams, max_share=0.5)
    assert dropped(store, files, result) == {(0, 1), (1, 1)}
    assert result.facts == {"dropped": {"books": 1, "web": 1}, "short": 1, "common": {}}
    [hit] = map(json.loads, store.local(result.hits[0]).read_text().splitlines())
    assert hit == {
        "evaluation": f"{tmp_path.name}/evaluation.jsonl:1", "text": QUESTION,
        "file": "0.txt", "offset": 1, "url": "",
    }  # fmt: skip


def test_common_phrases_do_not_count(tmp_path: Path) -> None:
    pages = [f"page {number}, {PHRASE}" for number in range(20)]
    store, files = write_documents(tmp_path, [[*pages, QUESTION], [pages[0]]], ["web", "books"])
    with without_ray():
        result = decontaminate(store, files, evaluation(tmp_path), max_share=0.1)
    # In books, where one of one document has it, the phrase isn't common.
    assert dropped(store, files, result) == {(0, 20), (1, 0)}
    [*named] = result.facts["common"]["web"]
    assert {entry["text"] for entry in named} == {PHRASE}
    assert {entry["documents"] for entry in named} == {20}


def test_sets_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 3 texts has data\.decontamination\.ngram=40"):
        evaluation(tmp_path, 40)
    with pytest.raises(DataError, match=r"data\.decontamination\.path"):
        read_evaluation_texts([str(tmp_path / "none*.jsonl")], 8)
