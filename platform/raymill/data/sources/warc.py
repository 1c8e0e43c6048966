"""Web archives: pages as a crawler stored them (WARC), or their texts (WET)."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from typing import BinaryIO, ClassVar, Literal

from fastwarc.warc import ArchiveIterator, WarcRecord

from raymill.data.sources.archive_records import (
    HEADER_BYTES,
    Damage,
    RawRecord,
    raw_records,
)
from raymill.data.sources.charset import decoded
from raymill.data.sources.extracted import Entry, PageRecord, extracted
from raymill.data.sources.extraction import Page
from raymill.data.sources.format import Bad, Format, Found, Place, Skipped
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.members import (
    DamagedMemberError,
    Member,
    gzip_codec,
    member_ranges,
    members,
)
from raymill.data.sources.window import Window

# Bytes that a gzip member may inflate to before the next record begins.
_BOMB_BYTES = 256 << 20
_GZIP = gzip_codec(rb"WARC/\d")
_HTML = re.compile(r"text/html|application/xhtml\+xml", re.IGNORECASE)
_HTML_BEGINS = re.compile(
    rb"\s*(<!doctype\s+html|<html|<\?xml[^>]*>\s*<(!doctype\s+)?html)", re.IGNORECASE
)


class WebArchive(Format):
    """WARC and WET, compressed record by record or not at all.

    Pages are the answers with status 200 that are HTML, and the texts of WET; the archive's own records
    (requests, metadata) aren't documents. A record's place is that of its gzip member.
    """

    name: ClassVar[str] = "warc"
    endings: ClassVar[tuple[str, ...]] = ("warc", "warc.gz", "wet", "wet.gz")
    has_columns: ClassVar[bool] = False
    extracts: ClassVar[bool] = True

    def cut(self, file: InputRange, unit_bytes: int) -> Iterator[InputRange]:
        """Cut a compressed archive between its members.

        In one that isn't compressed, a page about web archives could look like a record.
        """
        if file.path.lower().endswith(".gz"):
            yield from member_ranges(file, unit_bytes, _GZIP)
        else:
            yield file

    def records(self, span: InputRange, stream: io.BufferedReader) -> Iterator[Found | Bad]:
        yield from extracted(archive_entries(span, stream), span.extraction)


def archive_entries(span: InputRange, stream: BinaryIO) -> Iterator[Entry]:
    """Yield the pages of a range, not yet extracted, and what isn't a page, from the range's bytes."""
    window = Window(stream.read, span.offset)
    limit = span.extraction.max_page_bytes
    compressed = span.path.lower().endswith(".gz")
    parts = (
        _compressed_records(window, limit, span) if compressed else _plain_records(window, limit)
    )
    for record, place in parts:
        if entry := _entry(record, place, span):
            yield entry


def _plain_records(window: Window, limit: int) -> Iterator[tuple[RawRecord | Damage, Place]]:
    for record in raw_records(window, limit + HEADER_BYTES):
        yield record, _place(record, record.offset, len(_content(record)))


def _compressed_records(
    window: Window, limit: int, span: InputRange
) -> Iterator[tuple[RawRecord | Damage, Place]]:
    for member in members(window, _GZIP):
        source = _Unexploded(member)
        try:
            for record in raw_records(Window(source.read), limit + HEADER_BYTES):
                # A member that holds several records isn't read to its end yet.
                stop = span.offset + span.length
                length = member.length if member.ended else stop - member.offset
                yield record, _place(record, member.offset, length)
                source.inflated = 0
        except DamagedMemberError as error:
            cause = "page too large" if source.inflated > _BOMB_BYTES else "damaged"
            damage = Damage(f"the gzip member is unusable: {error}", cause, member.offset)
            yield damage, Place(member.offset, window.start - member.offset)


class _Unexploded:
    """Contents of a gzip member, which may not inflate endlessly; `inflated` counts bytes since it was set."""

    def __init__(self, member: Member) -> None:
        self.inflated = 0
        self._member = member

    def read(self, size: int) -> bytes:
        content = self._member.read(size)
        self.inflated += len(content)
        if self.inflated > _BOMB_BYTES:
            raise DamagedMemberError(
                f"it inflates to more than {_BOMB_BYTES >> 20} MiB without a record"
            )
        return content


def _content(record: RawRecord | Damage) -> bytes:
    return record.content if isinstance(record, RawRecord) else b""


def _place(record: RawRecord | Damage, offset: int, length: int) -> Place:
    return Place(offset, length, hashlib.sha256(_content(record)).digest())


def _entry(record: RawRecord | Damage, place: Place, span: InputRange) -> Entry | None:
    """Return a record as a page or text; None for one that isn't about a page."""
    where = f"{span.name}, byte {place.offset}"
    if isinstance(record, Damage):
        return Bad(where, record.why, cause=record.cause)
    if record.kind not in ("response", "resource", "conversion"):
        return None
    limit = span.extraction.max_page_bytes
    try:
        parsed, content = _parsed(record.content, limit + 1)
    # fastwarc's errors about bytes; `ValueError` where it finds no record at all.
    except (OSError, ValueError) as error:
        return Bad(where, f"the record can't be parsed: {str(error)[:200]}", cause="damaged")
    if len(content) > limit:
        return Bad(where, f"the page is larger than {limit} bytes", cause="page too large")
    url = (parsed.headers.get("WARC-Target-URI") or "").strip("<> ")
    if record.kind == "conversion":
        return Found({"url": url}, place, decoded(content))
    http = parsed.http_headers if parsed.is_http_parsed else None
    if http is not None and http.status_code not in (None, 200):
        return Skipped.because(f"HTTP status {http.status_code}")
    if not _is_html(parsed, content):
        return Skipped.because("not HTML")
    charset = parsed.http_charset if http is not None else None
    return PageRecord(Page(content, charset), {"url": url}, place, where)


def _parsed(content: bytes, limit: int) -> tuple[WarcRecord, bytes]:
    """Return a record with its headers, and at most `limit` bytes of its payload.

    Pages that are compressed once more are decompressed no further than that.
    """
    try:
        record = _opened(content, "all")
        return record, _payload(record, limit)
    except (OSError, ValueError):
        # Crawlers keep the header of an encoding that they have undone.
        record = _opened(content, "none")
        return record, _payload(record, limit)


def _opened(content: bytes, decode: Literal["all", "none"]) -> WarcRecord:
    # A record ends with two line ends. Quirks are headers with plain line feeds.
    archive = ArchiveIterator(
        io.BytesIO(content + b"\r\n\r\n"),
        parse_http=True,
        auto_decode=decode,
        strict_mode=False,
        quirks_mode=True,
    )
    record = next(iter(archive), None)
    if record is None:
        raise ValueError("no record")
    return record


def _payload(record: WarcRecord, limit: int) -> bytes:
    parts, size = [], 0
    while size < limit and (part := record.reader.read(limit - size)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _is_html(record: WarcRecord, content: bytes) -> bool:
    """Return whether a record is HTML by its headers, or by how it begins where they say nothing."""
    kinds = (
        record.headers.get("WARC-Identified-Payload-Type"),
        record.http_content_type if record.is_http_parsed else record.headers.get("Content-Type"),
    )
    stated = [kind for kind in kinds if kind]
    if not stated:
        return bool(_HTML_BEGINS.match(content))
    return any(_HTML.match(kind) for kind in stated)
