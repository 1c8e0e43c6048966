"""Text of one page: its characters, its depth, and what an extractor takes for its main text.

Parsers of broken HTML may take minutes, gigabytes, or the process with them, so this runs in a child process:
see `extraction_child.py` and `extraction_parent.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymill.data.sources.charset import decoded
from raymill.data.sources.nesting import nests_deeper
from raymill.schema.extraction_section import ExtractionConfig


@dataclass(frozen=True, slots=True)
class Page:
    """Contents of a page as stored. `charset` is the one that its HTTP header declares.

    `part`: the "main" text of a web page, the "whole" text of a book's chapter, or the text of "wikitext", of
    which links into `namespaces` aren't text.
    """

    content: bytes
    charset: str | None = None
    part: Literal["main", "whole", "wikitext"] = "main"
    namespaces: tuple[str, ...] = ()


class PageRefusedError(Exception):
    """A page isn't extracted; the argument is the reason."""


TOO_DEEP = "nested too deeply"


def page_text(page: Page, config: ExtractionConfig) -> str:
    """Return the text of a page, "" where the extractor finds none.

    Raises:
        PageRefusedError: elements nest deeper than `max_depth`.
    """
    if page.part == "wikitext":
        from raymill.data.sources.wikitext import plain_text

        return plain_text(page.content.decode("utf-8", "replace"), page.namespaces)
    if nests_deeper(page.content, config.max_depth):
        raise PageRefusedError(TOO_DEEP)
    html = decoded(page.content, page.charset)
    if page.part == "whole":
        return _plain(html, main=False)
    return _plain(html, main=True) if config.extractor == "resiliparse" else _main(html, config)


def _plain(html: str, *, main: bool) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    # Comments below an article are other texts by other people.
    text: str = extract_plain_text(html, main_content=main, comments=not main, alt_texts=False)
    return text.strip()


def _main(html: str, config: ExtractionConfig) -> str:
    import trafilatura

    text: str | None = trafilatura.extract(
        html,
        fast=True,
        favor_precision=config.focus == "precision",
        favor_recall=config.focus == "recall",
        include_comments=False,
        include_tables=True,
        include_formatting=False,
    )
    return text or ""
