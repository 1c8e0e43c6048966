"""Preview of cleaning: what a document was, what each step made of it, and why it was dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raymill.data.corpus.cleaning.declared import declared_steps
from raymill.data.corpus.preview import SHOWN_LINES, preview
from raymill.data.sources.documents import DocumentParser
from raymill.data.sources.files import find_files

PARSER = DocumentParser("text", None, 0.0, 1)
CLEANING: dict[str, dict[str, object]] = {
    "repair": {"unescape_html": "auto"},
    "pii": {"email_masks": ["MASK"], "ip_masks": [], "phone_masks": [], "public_ips_only": True,
            "max_found": 2},
}  # fmt: skip


def shown(folder: Path, texts: list[str], count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl").write_text("\n".join(["no record", *lines]))
    problems: list[str] = []
    steps = declared_steps(CLEANING, problems)
    assert problems == []
    units = [tuple(find_files([str(folder)], "data.path"))]
    return [*preview(units, PARSER, steps, count, seed=1)]


def test_changes_are_shown_step_by_step(tmp_path: Path) -> None:
    lines = shown(tmp_path / "in", ["schÃ¶n\nsame\nmail a@b.org"], 5)
    assert lines[0].startswith("── document 1 of 5 ──")
    assert lines[1].endswith("in/a.jsonl")
    assert lines[2:5] == ["  schÃ¶n", "  same", "  mail a@b.org"]
    assert lines[5:8] == [
        "repair: 24 → 23 characters · repair.lines 1", "  -schÃ¶n", "  +schön",
    ]  # fmt: skip
    assert lines[8].startswith("pii: 23 → 20 characters · pii.emails 1, ")
    assert lines[9:12] == ["  -mail a@b.org", "  +mail MASK", "kept: 24 → 20 characters"]


def test_a_dropped_document_ends_with_its_reason(tmp_path: Path) -> None:
    lines = shown(tmp_path / "in", ["a@b.c c@d.e f@g.h"], 1)
    assert lines[-2].startswith("pii: DROPPED (too_many)")
    assert not any(line.startswith("kept") for line in lines)


def test_as_many_as_asked_for(tmp_path: Path) -> None:
    lines = shown(tmp_path / "in", [f"text {number}" for number in range(9)], 3)
    assert sum(line.startswith("── document") for line in lines) == 3
    assert [line for line in lines if line.startswith("repair")] == [
        "repair: unchanged · repair.lines 0"
    ] * 3


@pytest.mark.parametrize("text", ["\x1b[31mred\x07\r", "wide " * 1000, "line\n" * 1000])
def test_hostile_documents_stay_short_and_printable(tmp_path: Path, text: str) -> None:
    lines = shown(tmp_path / "in", [text], 1)
    assert all(line.isprintable() for line in lines)
    assert len(lines) < 3 * SHOWN_LINES
    assert max(map(len, lines)) < 200
