"""Repeated paragraphs, of which only the first stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data.documents_factory import CONFIG, write_documents
from data.in_process import without_ray
from raymill.data.corpus.deduplication.run import deduplicate
from raymill.data.corpus.documents import read_documents

NOTICE = "This page may be copied by everyone who likes to, as long as this notice stays."
STORY = "Once upon a time there was a corpus that had the same sentence in many places."
SHORT = "Read more"
PARAGRAPHS = replace(CONFIG, documents=False, near=False, paragraphs=True)


def texts_of(folder: Path, units: list[list[str]], memory_bytes: int = 1 << 28) -> list[list[str]]:
    """Texts of the units after the deduplication of paragraphs."""
    store, files = write_documents(folder, units)
    with without_ray():
        result = deduplicate(store, files, replace(PARAGRAPHS, memory_bytes=memory_bytes))
    assert all(bitmap is None for bitmap in result.keep)
    return [
        [document.text for document in read_documents(store.local(file.stored))]
        for file in result.documents
    ]


def test_later_paragraphs_are_cut(tmp_path: Path) -> None:
    units = [
        [f"One\n\n{NOTICE}\n\n{SHORT}", f"Two\n\n{NOTICE.upper()}\n\n{SHORT}"],
        [f"{STORY}\n{STORY}", "Untouched."],
        [f"  {STORY} ", f"{NOTICE}\n{STORY}\nThe end"],
    ]
    expected = [
        [units[0][0], f"Two\n\n{SHORT}"],
        [STORY, "Untouched."],
        ["The end"],
    ]
    for memory_bytes in (1 << 28, 100):
        assert texts_of(tmp_path / str(memory_bytes), units, memory_bytes) == expected


def test_counts_by_source_and_untouched_files(tmp_path: Path) -> None:
    units = [[f"{NOTICE}\n{STORY}"], [NOTICE, "something else"], ["a text"]]
    store, files = write_documents(tmp_path, units, ["books", "web", "web"])
    with without_ray():
        result = deduplicate(store, files, PARAGRAPHS)
    assert result.facts == {
        "paragraphs": {"books": 2, "web": 1},
        "cut": {"books": 0, "web": 1},
        "emptied": {"books": 0, "web": 1},
    }
    assert result.documents[0] == files[0]
    assert result.documents[1].rows == 1
    assert result.documents[2] == files[2]


def test_paragraph_of_a_dropped_document_stays_in_another(tmp_path: Path) -> None:
    # The second document goes as a copy; the third one's paragraph is then the first of its kind.
    text = f"{SHORT}\n{NOTICE}"
    units = [[text, text.lower(), f"Other\n{STORY}"]]
    store, files = write_documents(tmp_path, units)
    with without_ray():
        result = deduplicate(store, files, replace(PARAGRAPHS, documents=True))
    assert result.keep[0] is not None, "nothing was cut, so the bitmap counts"
    assert result.facts["cut"] == {"web": 0}
    assert result.facts["dropped"] == {"web": {"web": 1}}
