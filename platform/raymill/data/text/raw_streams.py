"""Bytes on their way from a file to its records: digested as they are read, decompressed, bounded."""

from __future__ import annotations

import hashlib
import io
from typing import Any, BinaryIO

READ_BYTES = 1 << 20
COMPRESSED_BYTES = 1 << 16  # may expand twentyfold


class Hashing(io.RawIOBase):
    """Reads at most `length` bytes of a file and passes them through a digest."""

    def __init__(self, file: BinaryIO, digest: hashlib._Hash, length: int) -> None:
        super().__init__()
        self._file, self._digest, self._left = file, digest, length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        content = self._file.read(min(len(view), self._left))
        view[: len(content)] = content
        self._digest.update(content)
        self._left -= len(content)
        return len(content)

    def drain(self) -> None:
        """Digest what the decompressor left unread."""
        while self.read(READ_BYTES):
            pass


class Zstandard(io.RawIOBase):
    """Decompresses one frame after the other.

    `zstandard.stream_reader` takes a file that was cut off for one that ends there; this one doesn't.
    """

    def __init__(self, source: BinaryIO | io.BufferedReader) -> None:
        import zstandard

        super().__init__()
        self._source = source
        self._codec = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._error = zstandard.ZstdError
        self._frame = self._codec.decompressobj()
        self._inside = False  # a frame has begun and not ended
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._more():
            pass
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _more(self) -> bool:
        """Decompress the next stretch of input; False at the end of the last frame."""
        content = self._frame.unused_data if self._frame.eof else b""
        content = content or self._source.read(COMPRESSED_BYTES)
        if not content:
            if self._inside:
                raise EOFError("the compressed stream ends in the middle of a frame")
            return False
        if self._frame.eof:
            self._frame = self._codec.decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(content))
        except self._error as error:
            raise EOFError(str(error)) from error
        self._inside = not self._frame.eof
        return True


def whole_characters(content: bytes) -> bytes:
    """Leave off a UTF-8 character that a cut in the middle of an endless line would halve."""
    if content.endswith(b"\n"):
        return content
    for back in range(1, 4):
        if (
            content[-back] >= 0xC0
        ):  # a leading byte: the character it starts may go on after the cut
            return content[:-back]
        if content[-back] < 0x80:
            break
    return content
