"""Dumps of Wikipedia and other wikis: articles in XML, with wikitext inside."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar
from urllib.parse import quote
from xml.etree import ElementTree

from raymill.data.sources.extracted import Entry, PageRecord, extracted
from raymill.data.sources.extraction import Page
from raymill.data.sources.format import Bad, Format, Found, Place, Skipped
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.members import (
    DamagedMemberError,
    Member,
    bzip2_codec,
    member_ranges,
    members,
)
from raymill.data.sources.raw_streams import open_input
from raymill.data.sources.window import Window

# A dump in many streams has a hundred pages in each but the first and the last.
_BZIP2 = bzip2_codec(rb"\s*<page>")
# Bytes of a stream that are decompressed at once, so that its length is known; most have 5 MB.
_STREAM_BYTES = 32 << 20
# Bytes in which the description of the wiki ends.
_HEAD_BYTES = 1 << 18
_BEGIN, _END = re.compile(rb"<page>"), re.compile(rb"</page>")
_LANGUAGE = re.compile(r'<mediawiki\s[^>]*xml:lang="([^"]+)"')
_BASE = re.compile(r"<base>([^<]*)/[^/<]*</base>")
# Numbers of the namespaces of media, files and categories.
_NAMESPACE = re.compile(r'<namespace key="(?:-2|6|14)"[^>]*>([^<]+)</namespace>')
_ENGLISH = ("Media", "File", "Image", "Category")


@dataclass(frozen=True, slots=True)
class Wiki:
    """Description at the head of a dump: language, address before the titles, names of namespaces left out."""

    language: str
    base: str
    namespaces: tuple[str, ...]


class WikipediaDump(Format):
    """`*-pages-articles*.xml`, plain or `.bz2`; articles that aren't redirects are documents.

    The place of an article in a compressed dump is that of its bzip2 stream.
    """

    name: ClassVar[str] = "wikipedia"
    endings: ClassVar[tuple[str, ...]] = ("xml", "xml.bz2")
    has_columns: ClassVar[bool] = False
    extracts: ClassVar[bool] = True

    def cut(self, file: InputRange, unit_bytes: int) -> Iterator[InputRange]:
        """Cut a dump in many streams (`-multistream`) between them."""
        if file.path.lower().endswith(".bz2"):
            yield from member_ranges(file, unit_bytes, _BZIP2)
        else:
            yield file

    def records(self, span: InputRange, stream: io.BufferedReader) -> Iterator[Found | Bad]:
        yield from extracted(_entries(span, stream, wiki_of(span)), span.extraction)


def wiki_of(span: InputRange) -> Wiki:
    """Return the description at the head of a range's dump."""
    with open_input(span.path) as file:
        read = (
            Member(Window(file.read), _BZIP2).read
            if span.path.lower().endswith(".bz2")
            else file.read
        )
        window = Window(read)
        # Damage is reported where the first range is read.
        with suppress(DamagedMemberError):
            window.fill(_HEAD_BYTES)
        head = window.buffer[:_HEAD_BYTES].decode("utf-8", "replace")
    language, base = _LANGUAGE.search(head), _BASE.search(head)
    names = dict.fromkeys([*_ENGLISH, *_NAMESPACE.findall(head)])
    return Wiki(language[1] if language else "", base[1] if base else "", tuple(names))


def _entries(span: InputRange, stream: io.BufferedReader, wiki: Wiki) -> Iterator[Entry]:
    limit = span.extraction.max_page_bytes
    window = Window(stream.read, span.offset)
    if not span.path.lower().endswith(".bz2"):
        for offset, page in _pages(window, limit):
            yield _entry(page, Place(offset, len(page)), span, wiki)
        return
    for member in members(window, _BZIP2):
        contents = Window(member.read)
        try:
            contents.fill(_STREAM_BYTES)
            stop = member.offset + member.length if member.ended else span.offset + span.length
            for _, page in _pages(contents, limit):
                yield _entry(page, Place(member.offset, stop - member.offset), span, wiki)
        except DamagedMemberError as error:
            where = f"{span.name}, byte {member.offset}"
            yield Bad(where, f"the bzip2 stream is unusable: {error}", cause="damaged")


def _pages(window: Window, limit: int) -> Iterator[tuple[int, bytes]]:
    """Yield the elements of pages as XML, with their positions; what is longer than `limit` is cut off.

    Neither tag occurs in the text of an article, where `<` is escaped.
    """
    while window.seek_match(_BEGIN, lambda: True):
        end, searched = None, 0
        while end is None and searched < limit:
            more = window.fill(min(limit, searched + (1 << 16)))
            end = _END.search(window.buffer, max(searched - 8, 0), limit)
            searched = len(window.buffer) if more else limit
        size = min(limit, len(window.buffer)) if end is None else end.end()
        yield window.start, bytes(memoryview(window.buffer)[:size])
        window.drop(size)


def _entry(content: bytes, place: Place, span: InputRange, wiki: Wiki) -> Entry:
    where = f"{span.name}, byte {place.offset}"
    if not content.endswith(b"</page>"):
        limit = span.extraction.max_page_bytes
        if len(content) >= limit:
            why = f"the article is larger than {limit} bytes"
            return Bad(where, why, cause="page too large")
        return Bad(where, "the file ends in the middle of an article", cause="damaged")
    try:
        page = ElementTree.fromstring(content)
    # Entities are refused as well, since an article declares none.
    except ElementTree.ParseError as error:
        return Bad(where, f"the article isn't XML: {error}", cause="damaged")
    if page.findtext("ns", "0") != "0":
        return Skipped.because("not an article")
    if page.find("redirect") is not None:
        return Skipped.because("redirect")
    title = page.findtext("title", "")
    text = page.findtext("revision/text") or ""
    url = f"{wiki.base}/{quote(title.replace(' ', '_'), safe='/:(),')}" if wiki.base else ""
    values = {"url": url, "language": wiki.language}
    place = replace(place, sha256=hashlib.sha256(content).digest())
    where = f"{span.name}, article {title!r}"
    return PageRecord(Page(text.encode(), None, "wikitext", wiki.namespaces), values, place, where)
