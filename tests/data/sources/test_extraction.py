"""A page that breaks a limit is counted with its reason, and a new child extracts the next page."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data.sources.web_ranges import FAST, page
from raymill.data.sources.charset import decoded
from raymill.data.sources.extraction import Page
from raymill.data.sources.extraction_parent import Extractor, Refusal
from raymill.data.sources.nesting import nests_deeper

GOOD = Page(page("This is a sentence of the page."))
TEXT = "This is a sentence of the page. This is a sentence of the page."
DEEP = b"<div>" * 100_000 + b"text" + b"</div>" * 100_000
# Tags that close nothing hide the depth from the count before parsing.
HIDDEN = b"<div></x>" * 100_000 + b"text"


def outcomes(pages: list[bytes], **changes: object) -> list[str]:
    """Return the causes of refused pages and "text" for the others, each followed by a good page."""
    extractor = Extractor(replace(FAST, **changes))  # type: ignore[arg-type]
    try:
        answers = [*extractor.texts([part for content in pages for part in (Page(content), GOOD)])]
    finally:
        extractor.close()
    assert len(answers) == 2 * len(pages)
    for answer in answers[1::2]:
        assert isinstance(answer, str) and TEXT in answer
    return [answer.cause if isinstance(answer, Refusal) else "text" for answer in answers[::2]]


def test_pages_that_break_a_limit_cost_themselves_only() -> None:
    found = outcomes([DEEP, b"\0" * 100_000, HIDDEN, b"<" * 1_000_000, b""])
    assert found == ["nested too deeply", "text", "took too long", "text", "text"]


def test_a_page_that_needs_too_much_memory_costs_itself_only() -> None:
    large = b"<p>word<b>word</b>" * 400_000
    assert outcomes([large], max_memory_bytes=32 << 20) == ["took too much memory"]


def test_trafilatura_answers_each_page_as_well() -> None:
    pages = [DEEP, b"<p>" * 10_000, b"a" * 100_000]
    found = outcomes(pages, extractor="trafilatura", max_cpu_s=5.0)
    assert found == ["nested too deeply", "text", "text"]


@pytest.mark.parametrize(
    ("content", "deeper"),
    [
        (b"<div>" * 11, True),
        (b"<div>" * 10, False),
        (b"<p>" * 1000 + b"<br>" * 1000 + b"<img>" * 1000, False),
        (b"<div></div>" * 1000, False),
        (b"<li>text" * 1000, False),
        (b"<ul><li>" * 6, True),
        (b"<script>'" + b"<div>" * 100 + b"'</script><!-- " + b"<b>" * 100 + b"-->", False),
        (b"</div>" * 1000 + b"<DIV>" * 11, True),
        (b"<svg/>" * 1000, False),
        (b"", False),
    ],
)
def test_depth_counts_open_elements(content: bytes, deeper: bool) -> None:
    assert nests_deeper(content, 10) is deeper


GERMAN, JAPANESE, RUSSIAN = (
    "Grüße aus Köln, schön häßlich",
    "これは日本語の文章です",
    "Привет, это текст",
)


@pytest.mark.parametrize(
    ("text", "encoding", "declared", "meta"),
    [
        (GERMAN, "utf-8", None, ""),
        (GERMAN, "utf-8", "iso-8859-1", ""),
        (GERMAN, "cp1252", "iso-8859-1", ""),
        (GERMAN, "cp1252", None, '<meta charset="windows-1252">'),
        (GERMAN, "cp1252", "utf-8", '<meta charset="windows-1252">'),
        (GERMAN, "utf-16", None, ""),
        (GERMAN, "utf-8-sig", "iso-8859-1", ""),
        (JAPANESE, "shift_jis", "Shift_JIS", ""),
        (JAPANESE, "euc_jp", None, '<meta http-equiv=x content="text/html; charset=EUC-JP">'),
        (JAPANESE, "shift_jis", None, ""),
        (JAPANESE, "iso2022_jp", "iso-2022-jp", ""),
        (RUSSIAN, "koi8-r", None, '<?xml version="1.0" encoding="koi8-r"?>'),
        (RUSSIAN, "cp1251", "windows-1251", '<meta charset="nonsense">'),
        (RUSSIAN, "koi8-r", None, ""),
    ],
)
def test_characters_are_those_of_the_charset(
    text: str, encoding: str, declared: str | None, meta: str
) -> None:
    html = f"{meta}<html><body>{f'<p>{text}</p>' * 20}</body></html>"
    assert decoded(html.encode(encoding), declared) == html


def test_bytes_of_no_charset_still_become_text() -> None:
    assert "text" in decoded(bytes(range(256)) + b"<p>text</p>" + b"\xff\xfe\xfd", "utf-8")
