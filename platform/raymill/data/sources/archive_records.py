"""Records of a web archive as bytes, past those that are damaged (ISO 28500: WARC 1.0 and 1.1).

A reader that trusts each record's length loses all others after one that is wrong, so here a record ends where
the next one begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from raymill.data.sources.window import Window

BEGINS = b"WARC/"
# Bytes of the header of a record. Longer ones occur in no archive.
HEADER_BYTES = 1 << 16
_VERSION = re.compile(rb"WARC/\d+\.\d+[ \t]*\r?\n")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(
    rb"^content-length[ \t]*:[ \t]*(\d{1,18})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE
)
_TYPE = re.compile(rb"^warc-type[ \t]*:[ \t]*(\w+)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """Record as bytes, with its header; `offset` is its position in the stream, without separators."""

    kind: str
    content: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Stretch of a stream that holds no usable record. `cause` is the category in which it is counted."""

    why: str
    cause: str
    offset: int


def raw_records(window: Window, limit: int) -> Iterator[RawRecord | Damage]:
    """Yield the records of a stream, and what is damaged, or longer than `limit` bytes, between them."""
    while _skip_separators(window):
        offset = window.start
        header = _header_length(window)
        stated = _LENGTH.search(window.buffer, 0, header) if header else None
        if stated is None:
            yield Damage("no header of a record, or one without a length", "damaged", offset)
            _seek_record(window, 1)
            continue
        size = header + int(stated[1])
        found = _TYPE.search(window.buffer, 0, header)
        kind = found[1].decode().lower() if found else "unknown"
        if size > limit:
            yield Damage(f"the record is larger than {limit} bytes", "page too large", offset)
            # A wrong length would lead past other records.
            _seek_record(window, header)
            continue
        whole = window.fill(size)
        # The next record may begin inside this one, if its length is wrong.
        if not (whole and _is_followed(window, size)):
            inner = _inner_header(window, header, size)
            if inner is not None or not whole:
                why = "another one begins in it" if inner is not None else "the file ends in it"
                yield Damage(f"the record's length is wrong: {why}", "damaged", offset)
                window.drop(len(window.buffer) if inner is None else inner)
                continue
        yield RawRecord(kind, bytes(memoryview(window.buffer)[:size]), offset)
        window.drop(size)


def _skip_separators(window: Window) -> bool:
    """Drop line ends; return False at the end of the stream."""
    while window.fill(1):
        head = window.buffer[:64]
        blank = len(head) - len(head.lstrip(b"\r\n"))
        if not blank:
            return True
        window.drop(blank)
    return False


def _header_length(window: Window) -> int:
    """Return the length of the header that the buffer begins with, 0 where it doesn't."""
    window.fill(HEADER_BYTES)
    if not _VERSION.match(window.buffer):
        return 0
    found = _HEADER_END.search(window.buffer, 0, HEADER_BYTES)
    return found.end() if found else 0


def _is_followed(window: Window, size: int) -> bool:
    """Return whether a record of `size` bytes ends where the stream does, or where another one begins."""
    window.fill(size + 64)
    rest = window.buffer[size : size + 64].lstrip(b"\r\n")
    return not rest or rest.startswith(BEGINS)


def _inner_header(window: Window, first: int, end: int) -> int | None:
    """Return where another record begins between two positions of the buffer, None where none does."""
    while found := _VERSION.search(window.buffer, first, end):
        stop = _HEADER_END.search(window.buffer, found.end(), found.start() + HEADER_BYTES)
        if stop and _LENGTH.search(window.buffer, found.start(), stop.end()):
            return found.start()
        first = found.end()
    return None


def _seek_record(window: Window, skipped: int) -> None:
    """Drop bytes until a record begins, at least `skipped`; everything where there is none."""
    window.drop(skipped)

    def accept() -> bool:
        length = _header_length(window)
        return bool(length and _LENGTH.search(window.buffer, 0, length))

    window.seek_match(_VERSION, accept)
