"""Read the bytes of an input: hashed as they are read, decompressed, and located for messages."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from raymill.data.sources.inputs import InputRange
from raymill.data.store.shards import parsed_footer, read_footer
from raymill.reading import opened

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ_BYTES = 1 << 20
# Compressed bytes that are read at once; they may expand twentyfold.
COMPRESSED_BYTES = 1 << 16


class Hashing(io.RawIOBase):
    """Stream of at most `length` bytes of a file, which updates a digest."""

    def __init__(self, file: BinaryIO, digest: hashlib._Hash, length: int) -> None:
        super().__init__()
        self._file, self._digest, self._bytes_left = file, digest, length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        content = self._file.read(min(len(view), self._bytes_left))
        view[: len(content)] = content
        self._digest.update(content)
        self._bytes_left -= len(content)
        return len(content)

    def drain(self) -> None:
        """Hash the bytes that the decompressor left unread."""
        while self.read(READ_BYTES):
            pass


class Zstandard(io.RawIOBase):
    """Stream that decompresses one frame after another.

    `zstandard.stream_reader` treats a truncated file as complete; this class doesn't.
    """

    def __init__(self, source: BinaryIO | io.BufferedReader) -> None:
        import zstandard

        super().__init__()
        self._source = source
        self._codec = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._error = zstandard.ZstdError
        self._frame = self._codec.decompressobj()
        # A frame that has started and not ended means a truncated file.
        self._frame_open = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._ready and self._more():
            pass
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _more(self) -> bool:
        """Decompress the next part of the input; return False at the end of the last frame."""
        content = self._frame.unused_data if self._frame.eof else b""
        # Bytes after a frame's end belong to the next frame.
        content = content or self._source.read(COMPRESSED_BYTES)
        if not content:
            if self._frame_open:
                raise EOFError("the compressed stream ends in the middle of a frame")
            return False
        if self._frame.eof:
            self._frame = self._codec.decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(content))
        except self._error as error:
            raise EOFError(str(error)) from error
        self._frame_open = not self._frame.eof
        return True


def whole_characters(content: bytes) -> bytes:
    """Drop an incomplete UTF-8 character at the end of a line that was cut because of its
    length."""
    if content.endswith(b"\n"):
        return content
    for back in range(1, 4):
        # The character of this leading byte may continue after the cut.
        if content[-back] >= 0xC0:
            return content[:-back]
        if content[-back] < 0x80:
            break
    return content


def record_location(span: InputRange, number: int) -> str:
    """Return the location of line or row `number` of an input range, for a message."""
    kind = ", row " if span.format in ("parquet", "arrow") else ":"
    return f"{span.name}{kind}{_first_number(span) + number}"


@lru_cache(maxsize=64)
def _first_number(span: InputRange) -> int:
    if span.format == "arrow":
        return 0
    if span.format == "parquet":
        path = Path(span.path)
        metadata = parsed_footer(path, read_footer(path))
        # Rows are counted from the start of the file.
        return sum(metadata.row_group(group).num_rows for group in range(span.first_group))
    return first_line_number(span)


def first_line_number(span: InputRange) -> int:
    """Return the number of an input range's first line."""
    bytes_left, lines = span.offset, 1
    with opened(Path(span.path)) as file:
        while bytes_left and (content := file.read(min(READ_BYTES, bytes_left))):
            lines += content.count(b"\n")
            bytes_left -= len(content)
    return lines
