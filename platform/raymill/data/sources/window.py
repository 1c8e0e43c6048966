"""Bytes of a stream that stay until they are dropped, so that a reader can look ahead and step back."""

from __future__ import annotations

import re
from collections.abc import Callable

_CHUNK_BYTES = 1 << 16


class Window:
    """Bytes of a stream: `buffer` begins at its position `start` and grows by `fill`.

    `read` returns at most so many bytes, b"" at the end.
    """

    def __init__(self, read: Callable[[int], bytes], start: int = 0) -> None:
        self.start = start
        self.buffer = bytearray()
        self._read = read

    def fill(self, size: int) -> bool:
        """Read until the buffer holds `size` bytes; return False where the stream ends before."""
        while len(self.buffer) < size:
            content = self._read(max(_CHUNK_BYTES, size - len(self.buffer)))
            if not content:
                return False
            self.buffer += content
        return True

    def drop(self, count: int) -> None:
        """Forget the first `count` bytes of the buffer."""
        del self.buffer[:count]
        self.start += count

    def seek_match(self, pattern: re.Pattern[bytes], accept: Callable[[], bool]) -> bool:
        """Drop bytes until the buffer begins with a match that `accept` likes; False where there is none.

        A match is at most as long as a chunk. `accept` sees the buffer begin with the match, and may fill it.
        """
        while self.fill(1):
            more = self.fill(2 * _CHUNK_BYTES)
            if found := pattern.search(self.buffer):
                self.drop(found.start())
                self.fill(_CHUNK_BYTES)
                if accept():
                    return True
                self.drop(1)
            else:
                # A match may begin in the last bytes and end in the next ones.
                self.drop(len(self.buffer) - _CHUNK_BYTES if more else len(self.buffer))
        return False
