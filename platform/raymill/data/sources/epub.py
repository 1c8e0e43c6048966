"""Books in EPUB: the chapters in the order in which they are read, as one document (EPUB 3.3, W3C)."""

from __future__ import annotations

import hashlib
import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import unquote, urldefrag

from lxml import etree

from raymill.data.sources.extraction import Page
from raymill.data.sources.extraction_parent import Refusal, extractor
from raymill.data.sources.format import Bad, Format, Found, Place, Skipped
from raymill.data.sources.inputs import InputRange

# Bytes of a book as stored, and of its chapters.
_BOOK_BYTES, _CHAPTERS_BYTES = 256 << 20, 256 << 20
# Bytes of the two files that list the chapters.
_LIST_BYTES = 16 << 20
_NAMES = {
    "c": "urn:oasis:names:tc:opendocument:xmlns:container",
    "o": "http://www.idpf.org/2007/opf",
    "d": "http://purl.org/dc/elements/1.1/",
}
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml", "text/x-oeb1-document")


@dataclass(frozen=True, slots=True)
class Book:
    """Names of a book's chapters in the archive, and its language, "" where it states none."""

    chapters: tuple[str, ...]
    language: str


class UnusableBookError(Exception):
    """A book can't be used; the arguments are the reason and the category in which it is counted."""


class Epub(Format):
    """EPUB 2 and 3, not encrypted. All of a chapter is text, since it has no navigation."""

    name: ClassVar[str] = "epub"
    endings: ClassVar[tuple[str, ...]] = ("epub",)
    has_columns: ClassVar[bool] = False
    extracts: ClassVar[bool] = True

    def records(self, span: InputRange, stream: io.BufferedReader) -> Iterator[Found | Bad]:
        content = stream.read(_BOOK_BYTES + 1)
        try:
            if len(content) > _BOOK_BYTES:
                raise UnusableBookError(
                    f"the book is larger than {_BOOK_BYTES} bytes", "page too large"
                )
            text, book = self._text(content, span)
        except UnusableBookError as error:
            yield Bad(span.name, error.args[0], cause=error.args[1])
            return
        if not text:
            yield Skipped.because("no main text")
            return
        place = Place(0, len(content), hashlib.sha256(content).digest())
        yield Found({"language": book.language}, place, text)

    def _text(self, content: bytes, span: InputRange) -> tuple[str, Book]:
        config = span.extraction
        pages, left = [], _CHAPTERS_BYTES
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if "META-INF/encryption.xml" in archive.namelist() and _encrypts_text(archive):
                    raise UnusableBookError("the book is encrypted", "encrypted")
                book = read_contents(archive)
                for name in book.chapters:
                    chapter = _read(archive, name, min(config.max_page_bytes, left))
                    left -= len(chapter)
                    pages.append(Page(chapter, part="whole"))
        # zipfile reports encryption as RuntimeError, and an unknown compression as NotImplementedError.
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,
            KeyError,
            ValueError,
        ) as error:
            raise UnusableBookError(f"the archive can't be read: {error}", "damaged") from error
        texts = []
        for name, text in zip(book.chapters, extractor(config).texts(pages), strict=True):
            if isinstance(text, Refusal):
                # A book without one of its chapters would be another book.
                raise UnusableBookError(f"{name}: {text.why}", text.cause)
            texts.append(text)
        return "\n\n".join(filter(None, texts)), book


def read_contents(archive: zipfile.ZipFile) -> Book:
    """Return the chapters of a book in the order of its spine, without its table of contents.

    Raises KeyError where a listed file is missing.
    """
    container = _xml(_read(archive, "META-INF/container.xml", _LIST_BYTES))
    root = container.find(".//c:rootfile", _NAMES)
    package_name = "" if root is None else root.get("full-path", "")
    package = _xml(_read(archive, package_name, _LIST_BYTES))
    items = {item.get("id"): item for item in package.iterfind(".//o:manifest/o:item", _NAMES)}
    chapters = []
    for reference in package.iterfind(".//o:spine/o:itemref", _NAMES):
        item = items.get(reference.get("idref"))
        if item is None or item.get("media-type") not in _PAGES:
            continue
        if "nav" not in item.get("properties", "").split():
            path = unquote(urldefrag(item.get("href", "")).url)
            folder = posixpath.dirname(package_name)
            chapters.append(posixpath.normpath(posixpath.join(folder, path)))
    if not chapters:
        raise ValueError("it lists no chapters")
    language = package.findtext(".//d:language", "", _NAMES).strip().lower()
    return Book(tuple(dict.fromkeys(chapters)), language.partition("-")[0])


def _read(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Return a file of the archive; what it claims to be its size doesn't count."""
    with archive.open(name) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnusableBookError(f"{name} is larger than {limit} bytes", "page too large")
    return content


def _xml(content: bytes) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True, huge_tree=False)
    root = etree.fromstring(content, parser)
    if root is None:
        raise ValueError("a list of contents isn't XML")
    return root


def _encrypts_text(archive: zipfile.ZipFile) -> bool:
    """Return whether more than fonts are encrypted, which many free books obfuscate."""
    listing = _xml(_read(archive, "META-INF/encryption.xml", _LIST_BYTES))
    names = [element.get("URI", "") for element in listing.iter("{*}CipherReference")]
    return any(not name.lower().endswith((".otf", ".ttf", ".woff", ".woff2")) for name in names)
