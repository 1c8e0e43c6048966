"""Sources of web formats are declared, planned and read as those of records are."""

from __future__ import annotations

import bz2
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.sources.test_code import MIT
from data.sources.test_web_pages import DUMP, WANTED, book
from data.sources.web_ranges import FAST, PARSER, compressed, page, sentence_records
from raymill.config import load
from raymill.data.sources.documents import Document
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.records import read_records
from raymill.data.sources.source_plan import plan_sources
from raymill.errors import ConfigError
from raymill.schema.data_sections import DataConfig
from sections import plain


def planned(sources: dict[str, dict[str, Any]], **changes: Any) -> list[InputRange]:
    data = plain(
        DataConfig, name="d", source="files", path=None, sources=sources, extraction=FAST, **changes
    )
    return [span for unit in plan_sources(data, 0, split=False) for span in unit]


def test_files_of_all_web_formats_become_documents_of_their_source(tmp_path: Path) -> None:
    web, code = tmp_path / "web", tmp_path / "trees" / "free"
    web.mkdir()
    code.mkdir(parents=True)
    (web / "a.warc.gz").write_bytes(compressed(sentence_records(3)))
    (web / "b.html").write_bytes(page("A page."))
    (web / "c.epub").write_bytes(book())
    (web / "d.xml.bz2").write_bytes(b"".join(bz2.compress(part.encode()) for part in DUMP))
    (web / "e.jsonl").write_text('{"text": "a record"}\n')
    (code / "LICENSE").write_text(MIT)
    (code / "f.py").write_text("code = 1\n")
    sources = {
        "web": {"path": str(web)},
        "code": {"path": str(tmp_path / "trees"), "format": "code"},
    }
    spans = planned(sources)
    found = [r for span in spans for r in read_records(span, PARSER, hashlib.sha256())]
    by_source: dict[str, list[str]] = {}
    for record in found:
        assert isinstance(record, Document)
        by_source.setdefault(record.source, []).append(record.text)
    assert by_source["code"] == ["code = 1\n"]
    sentences = [f"This is sentence number {n}. This is sentence number {n}." for n in range(3)]
    assert {*sentences, *WANTED, "a record", "A page. A page."} <= set(by_source["web"])
    assert len(by_source["web"]) == 3 + 1 + 1 + 6 + 1
    # Other settings of extraction are other documents, except where nothing is extracted.
    assert sorted(span.format for span in spans if span.source.extraction is None) == ["jsonl"]
    for span in spans:
        if span.source.extraction is not None:
            other = replace(span.source, extraction=replace(FAST, max_depth=99))
            assert replace(span, source=other).to_tree() != span.to_tree()


def test_the_key_of_a_wrong_setting_is_named() -> None:
    overrides = ["data=files", "data.path=x", "data.extraction.focus=recall"]
    with pytest.raises(ConfigError, match=r"data\.extraction\.focus=recall"):
        load("prepare", [*overrides, "data.extraction.extractor=resiliparse"])
