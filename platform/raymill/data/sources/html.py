"""Web pages as files: one page is one document."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import ClassVar

from raymill.data.sources.extracted import PageRecord, extracted
from raymill.data.sources.extraction import Page
from raymill.data.sources.format import Bad, Format, Found, Place
from raymill.data.sources.inputs import InputRange


class HtmlFiles(Format):
    """HTML in any charset that the page declares."""

    name: ClassVar[str] = "html"
    endings: ClassVar[tuple[str, ...]] = ("html", "htm", "xhtml")
    has_columns: ClassVar[bool] = False
    extracts: ClassVar[bool] = True
    compressible: ClassVar[bool] = True

    def records(self, span: InputRange, stream: io.BufferedReader) -> Iterator[Found | Bad]:
        config = span.extraction
        content = stream.read(config.max_page_bytes + 1)
        if len(content) > config.max_page_bytes:
            why = f"the page is larger than {config.max_page_bytes} bytes"
            yield Bad(span.name, why, cause="page too large")
            return
        place = Place(0, len(content), hashlib.sha256(content).digest())
        yield from extracted([PageRecord(Page(content), {}, place, span.name)], config)
