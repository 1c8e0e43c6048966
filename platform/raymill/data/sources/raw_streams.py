"""Read the bytes of an input: hashed as they are read, decompressed, and located for messages."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pyarrow.parquet as pq

from raymill.data.sources.inputs import InputRange
from raymill.data.store.shards import footer_of, parsed_footer
from raymill.reading import opened, status
from raymill.schema.storage import is_uri
from raymill.storage.bucket_file import find_object, open_object

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ_BYTES = 1 << 20
# Compressed bytes that are read at once; they may expand twentyfold.
COMPRESSED_BYTES = 1 << 16
# A longer line is a bad record, because it would have to be held in memory completely.
LINE_BYTES = 64 * 2**20


class Hashing(io.RawIOBase):
    """Stream of the next `length` bytes of a file, which updates a digest.

    Raises EOFError where the file ends before.
    """

    def __init__(self, file: BinaryIO, digest: hashlib._Hash, length: int) -> None:
        super().__init__()
        self._file, self._digest, self._bytes_left = file, digest, length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        content = self._file.read(min(len(view), self._bytes_left))
        if not content and self._bytes_left and len(view):
            raise EOFError(f"{self._bytes_left} bytes are missing at its end")
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


def compression_of(kind: str) -> str:
    """Return the compression in an input range's `format`, as in `jsonl.gz`; "" for none."""
    return kind.partition(".")[2]


def open_input(path: str) -> io.BufferedReader:
    """Open an input file or object to read it from any position on; reads are retried.

    Raises:
        StorageError: it can't be read.
        OSError: there is no such file.
    """
    return open_object(path) if is_uri(path) else opened(Path(path))


def input_state(path: str) -> tuple[int, int] | None:
    """Return the size of an input file or object and its modification time in ns; None if there is none.

    Raises:
        StorageError: that isn't known.
    """
    if is_uri(path):
        found = find_object(path)
        return None if found is None else (found.size, found.modified_ns)
    state = status(Path(path))
    return None if state is None else (state.st_size, state.st_mtime_ns)


@contextmanager
def decompressed(raw: Hashing, compression: str) -> Iterator[io.BufferedReader]:
    """Yield the contents of a stream of bytes that is compressed by `gz`, `zst` or not at all ("")."""
    source: io.BufferedReader = io.BufferedReader(raw, READ_BYTES)
    if compression == "gz":
        with gzip.open(source) as stream:
            # Its own buffer is smaller, and lines may be long.
            yield io.BufferedReader(stream, READ_BYTES)
    elif compression == "zst":
        yield io.BufferedReader(Zstandard(source), READ_BYTES)
    else:
        yield source


def line_ranges(file: InputRange, unit_bytes: int) -> Iterator[InputRange]:
    """Yield byte ranges of about unit_bytes that end after a newline or at the file's end.

    A file that is compressed as a whole is one range.
    """
    if file.length <= unit_bytes or compression_of(file.format):
        yield file
        return
    with open_input(file.path) as stream:
        start = 0
        while start < file.file_bytes:
            # A range ends after the line that contains its last byte.
            stream.seek(min(start + unit_bytes, file.file_bytes) - 1)
            stream.readline()
            stop = min(stream.tell(), file.file_bytes)
            yield replace(file, offset=start, length=stop - start)
            start = stop


def first_line_number(span: InputRange) -> int:
    """Return the number of an input range's first line."""
    bytes_left, lines = span.offset, 1
    with open_input(span.path) as file:
        while bytes_left and (content := file.read(min(READ_BYTES, bytes_left))):
            lines += content.count(b"\n")
            bytes_left -= len(content)
    return lines


def parquet_metadata(path: str) -> pq.FileMetaData:
    """Return the metadata in a Parquet file's footer; raises as `parsed_footer` does."""
    with open_input(path) as file:
        return parsed_footer(Path(path), footer_of(Path(path), file))
