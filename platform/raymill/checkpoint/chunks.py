"""Digests of a file's chunks, so that a reader verifies just what it reads.

A rank's file ends with a table: the sha256 of every chunk of CHUNK_BYTES before the table, the last
of which may be shorter. The manifest records the sha256 of the table, which so proves every byte.
"""

from __future__ import annotations

import hashlib

# Small, since a reader of a few bytes reads their whole chunk; a table has 0.01% of its file's size.
CHUNK_BYTES = 2**18
DIGEST_BYTES = 32


class ChunkHasher:
    """Digests of the chunks of a stream of bytes."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._digests: list[bytes] = []
        self._current = hashlib.sha256()
        self._room = chunk_bytes

    def update(self, data: memoryview) -> None:
        """Continue with the next bytes of the stream."""
        while len(data):
            piece, data = data[: self._room], data[self._room :]
            self._current.update(piece)
            self._room -= len(piece)
            if not self._room:
                self._end_chunk()

    def table(self) -> bytes:
        """Return the digests, one after the other, at the end of the stream."""
        if self._room < self._chunk_bytes:
            self._end_chunk()
        return b"".join(self._digests)

    def _end_chunk(self) -> None:
        self._digests.append(self._current.digest())
        self._current = hashlib.sha256()
        self._room = self._chunk_bytes


def table_bytes(content: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Return the size of the table that follows `content` bytes."""
    return -(-content // chunk_bytes) * DIGEST_BYTES


def content_bytes(size: int, chunk_bytes: int) -> int:
    """Return the number of bytes before the table in a file of `size` bytes."""
    return size - -(-size // (chunk_bytes + DIGEST_BYTES)) * DIGEST_BYTES
