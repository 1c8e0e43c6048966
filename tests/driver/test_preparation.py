"""Preparation of text on the driver: the preview writes nothing, and a corpus gets its page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.corpus.corpus_factory import STEP, corpus_job, write_records
from data.in_process import without_ray
from raymill.data.text import prepare as text
from raymill.driver.preparation import prepare


def test_a_preview_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_records(tmp_path / "texts", 2, 5)
    prepare(replace(corpus_job(tmp_path), preview=3))
    shown = capsys.readouterr().out
    assert shown.count("── document") == 3
    assert shown.count(f"{STEP}: ") == 3
    assert not (tmp_path / "storage").exists()


def test_a_corpus_gets_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = write_records(tmp_path / "texts", 8, 20)
    few = sum(len(record["text"].split()) < 30 for record in records)
    monkeypatch.setattr(text, "run", text.prepare_with_ray)
    with without_ray():
        prepare(corpus_job(tmp_path, keep_rejects=0.5))
    [page] = (tmp_path / "storage" / "corpus").glob("*/report.html")
    content = page.read_text()
    assert f"{len(records)} documents read, {len(records) - few} kept by cleaning" in content
    assert f"few words {few}" in content
    assert f"<h3>{STEP}: few words</h3>" in content
    assert "shorten" in content
