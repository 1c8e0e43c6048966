"""Compressed members of a file, one after another, past those that are damaged.

A web archive is compressed record by record and a dump of Wikipedia by a hundred pages, so that a member can be
read from its offset, a file cut between members, and a damaged member passed over.
"""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Protocol

from raymill.data.sources.inputs import InputRange
from raymill.data.sources.raw_streams import open_input
from raymill.data.sources.window import Window

_INPUT_BYTES = 1 << 16
# Input of a member that is kept, to look for another member in it if it is damaged.
_KEPT_BYTES = 16 << 20
# Bytes in which a member begins, where a file has any.
_SEARCHED_BYTES = 64 << 20
# zlib's number for a gzip header and a window of any size.
_GZIP_BITS = 31


class DamagedMemberError(Exception):
    """A member can't be decompressed to its end; the message says why."""


class Inflater(Protocol):
    """Decompressor of one member, as `bz2.BZ2Decompressor`."""

    @property
    def eof(self) -> bool:
        """State of the member: True when it has ended and its checksum fits."""
        ...

    @property
    def needs_input(self) -> bool:
        """State of the input: True when contents need more of it."""
        ...

    @property
    def unused_data(self) -> bytes:
        """Input after the member's end."""
        ...

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Return at most `max_length` bytes of contents; what is left of the input is kept."""
        ...


class _Gzip:
    """zlib's decompressor with the interface of bz2's."""

    def __init__(self) -> None:
        self._codec = zlib.decompressobj(_GZIP_BITS)

    @property
    def eof(self) -> bool:
        return self._codec.eof

    @property
    def needs_input(self) -> bool:
        return not self._codec.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._codec.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._codec.decompress(data or self._codec.unconsumed_tail, max_length)


@dataclass(frozen=True)
class Codec:
    """Compression in members. `magic` matches their first bytes; `begins`, the contents of a member that is
    searched for; `probe_bytes` of input are enough to see them."""

    magic: re.Pattern[bytes]
    begins: re.Pattern[bytes]
    inflater: Callable[[], Inflater]
    probe_bytes: int


# Magic number, deflate, and flags of which the upper three bits are 0 (RFC 1952, 2.3).
_GZIP_MAGIC = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")
# Header of a stream and of its first block.
_BZIP2_MAGIC = re.compile(rb"BZh[1-9]1AY&SY")


def gzip_codec(begins: bytes) -> Codec:
    """Return gzip with members that begin with a pattern."""
    return Codec(_GZIP_MAGIC, re.compile(begins), _Gzip, 4096)


def bzip2_codec(begins: bytes) -> Codec:
    """Return bzip2 with streams that begin with a pattern; a block of it has up to 900 kB."""
    return Codec(_BZIP2_MAGIC, re.compile(begins), bz2.BZ2Decompressor, 1 << 20)


class Member:
    """One member, read once from the start to the end. `length` is known when it has been read."""

    def __init__(self, window: Window, codec: Codec) -> None:
        self.offset = window.start
        self.length = 0
        self._window = window
        self._inflater = codec.inflater()
        self._used = 0

    @property
    def ended(self) -> bool:
        """State of the member: True when it was read to its end and its checksum fits."""
        return self._inflater.eof

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes of contents, b"" at the end.

        Raises:
            DamagedMemberError: the member is damaged, or the file ends in it.
        """
        while not self._inflater.eof:
            pending = self._input() if self._inflater.needs_input else b""
            try:
                content = self._inflater.decompress(pending, size)
            except (zlib.error, OSError) as error:
                raise DamagedMemberError(f"it can't be decompressed ({error})") from error
            if self._inflater.eof:
                self._used -= len(self._inflater.unused_data)
                self.length = self._window.start + self._used - self.offset
                self._window.drop(self._used)
            if content:
                return content
        return b""

    def _input(self) -> bytes:
        if self._used >= _KEPT_BYTES:
            self._window.drop(self._used)
            self._used = 0
        if len(self._window.buffer) == self._used and not self._window.fill(self._used + 1):
            raise DamagedMemberError("the file ends in the middle of it")
        content = bytes(self._window.buffer[self._used : self._used + _INPUT_BYTES])
        self._used += len(content)
        return content


def members(window: Window, codec: Codec) -> Iterator[Member]:
    """Yield the members of a file.

    A consumer that stops before a member's end, because it is damaged or too long, is led to the next one.
    """
    while _skip_padding(window):
        member = Member(window, codec)
        yield member
        if not member.ended:
            if window.start == member.offset:
                window.drop(1)
            seek_member(window, codec)


def _skip_padding(window: Window) -> bool:
    """Drop zeros, which may follow a member; return False at the end of the file."""
    while window.fill(1):
        head = window.buffer[:_INPUT_BYTES]
        zeros = len(head) - len(head.lstrip(b"\0"))
        if not zeros:
            return True
        window.drop(zeros)
    return False


def member_ranges(file: InputRange, unit_bytes: int, codec: Codec) -> Iterator[InputRange]:
    """Yield ranges of about `unit_bytes` that begin with members; the rest of a file without any as one."""
    start = 0
    with open_input(file.path) as stream:
        while start + unit_bytes < file.length:
            found = _member_after(stream, start + unit_bytes, codec)
            if found is None:
                break
            yield replace(file, offset=start, length=found - start)
            start = found
    yield replace(file, offset=start, length=file.length - start)


def _member_after(stream: BinaryIO, position: int, codec: Codec) -> int | None:
    """Return where the first member after a position begins, None where none is near."""
    stream.seek(position)
    # Files that aren't compressed in members aren't searched to their end.
    left = _SEARCHED_BYTES

    def read(size: int) -> bytes:
        nonlocal left
        content = stream.read(min(size, left))
        left -= len(content)
        return content

    window = Window(read, position)
    return window.start if seek_member(window, codec) else None


def seek_member(window: Window, codec: Codec) -> bool:
    """Drop bytes until a member begins with contents as the codec says; False where there is none."""

    def accept() -> bool:
        window.fill(codec.probe_bytes)
        try:
            probe = bytes(window.buffer[: codec.probe_bytes])
            content = codec.inflater().decompress(probe, 64)
        except (zlib.error, OSError):
            return False
        return codec.begins.match(content) is not None

    return window.seek_match(codec.magic, accept)
