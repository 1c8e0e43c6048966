"""Ranges of web formats for tests: files are written, cut and read as a preparation does."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

from raymill.data.sources.documents import Document, DocumentParser
from raymill.data.sources.format import Bad, Skipped
from raymill.data.sources.inputs import InputRange, Source
from raymill.data.sources.registry import format_named
from raymill.schema.extraction_section import ExtractionConfig

# Fast, and with limits that tests reach.
FAST = ExtractionConfig(
    extractor="resiliparse",
    focus="balanced",
    max_page_bytes=1 << 20,
    max_depth=250,
    max_cpu_s=1.0,
    max_memory_bytes=1 << 29,
)
PARSER = DocumentParser(text_column="text", group_column=None, fraction=0.0, seed=0)


def whole_range(path: Path, kind: str, extraction: ExtractionConfig = FAST) -> InputRange:
    """Return the range of a whole file, in a source that reads permissive code only."""
    size = path.stat().st_size
    source = Source("web", extraction=extraction, license="permissive")
    name = f"{path.parent.name}/{path.name}"
    return InputRange(name, str(path), kind, "train", 0, size, size, 0, source=source)


def read(span: InputRange) -> list[Document | Bad]:
    """Return the records of a range, whose bytes have all been hashed."""
    digest = hashlib.sha256()
    found = [*format_named(span.format).read(span, PARSER, digest)]
    content = Path(span.path).read_bytes()[span.offset : span.offset + span.length]
    assert digest.digest() == hashlib.sha256(content).digest()
    return found


def read_cut(span: InputRange, unit_bytes: int) -> tuple[list[InputRange], list[Document | Bad]]:
    """Return the ranges that a file is cut into, and all their records."""
    pieces = [*format_named(span.format).cut(span, unit_bytes)]
    assert sum(piece.length for piece in pieces) == span.length
    return pieces, [record for piece in pieces for record in read(piece)]


def read_bytes(folder: Path, content: bytes, kind: str, **limits: int) -> list[Document | Bad]:
    """Return the records of a file with this content."""
    path = folder / f"input.{kind}"
    path.write_bytes(content)
    return read(whole_range(path, kind, replace(FAST, **limits)))


def texts(found: list[Document | Bad]) -> list[str]:
    """Return the texts of the documents."""
    return [record.text for record in found if isinstance(record, Document)]


def causes(found: list[Document | Bad]) -> list[str]:
    """Return why records are bad."""
    return [r.cause for r in found if isinstance(r, Bad) and not isinstance(r, Skipped)]


def skipped(found: list[Document | Bad]) -> list[str]:
    """Return why records are no documents."""
    return [record.cause for record in found if isinstance(record, Skipped)]


def page(sentence: str) -> bytes:
    """Return a page whose main text is a sentence, a few times."""
    return f"<html><body><article><p>{sentence} {sentence}</p></article></body></html>".encode()


def archive_record(
    url: str, body: bytes, *headers: str, status: int = 200, kind: str = "text/html; charset=utf-8"
) -> bytes:
    """Return an answer as a WARC record, not compressed."""
    lines = [f"HTTP/1.1 {status} Status", f"Content-Type: {kind}", *headers]
    http = "\r\n".join([*lines, "", ""]).encode() + body
    head = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:1>\r\n"
        f"WARC-Target-URI: {url}\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def sentence_records(count: int) -> list[bytes]:
    """Return records of pages with different sentences."""
    return [
        archive_record(f"https://a.example/{number}", page(f"This is sentence number {number}."))
        for number in range(count)
    ]


def compressed(records: list[bytes]) -> bytes:
    """Return records as members of a gzip file."""
    return b"".join(map(gzip.compress, records))
