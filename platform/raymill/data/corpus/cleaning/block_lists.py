"""Lists of the user's, such as those of blocked domains.

A list is a text file in UTF-8, plain or compressed (.gz, .zst), with one entry a line. Empty lines and
lines that begin with "#" don't count.
"""

from __future__ import annotations

import gzip
import io
import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raymill.data.sources.raw_streams import Zstandard
from raymill.durable import sha256_file, sha256_text
from raymill.errors import DataError
from raymill.reading import opened, status

Loaded = TypeVar("Loaded")
# Entries hashed at a time, so that loading millions of them takes little memory.
_CHUNK = 1 << 16


class HashedEntries:
    """Set of texts in 8 bytes each: their sorted 64-bit hashes.

    Of 1e10 texts asked for, 0.003 are expected to be found wrongly among 5 million entries.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        chunks: list[NDArray[np.uint64]] = []
        waiting: list[bytes] = []
        for entry in entries:
            waiting.append(_digest(entry))
            if len(waiting) == _CHUNK:
                chunks.append(_hashes(waiting))
                waiting = []
        unique = np.unique(np.concatenate([*chunks, _hashes(waiting)]))
        # Single items of an array are found several times as fast as those of NumPy's.
        self._sorted = array("Q", unique.tobytes())

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, text: str) -> bool:
        wanted = int.from_bytes(_digest(text), sys.byteorder)
        place = bisect_left(self._sorted, wanted)
        return place < len(self._sorted) and self._sorted[place] == wanted


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _hashes(digests: list[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def loaded(load: Callable[[Iterator[str]], Loaded], paths: tuple[str, ...]) -> Loaded:
    """Return what `load` makes of the entries of files, once in a process while the files stay the same.

    Raises:
        DataError: a file is missing, damaged, or not UTF-8.
    """
    result: Loaded = _loaded(load, tuple((path, _version(path)) for path in paths))
    return result


@lru_cache(maxsize=16)
def _loaded(load: Callable[[Iterator[str]], Any], files: tuple[tuple[str, object], ...]) -> Any:
    return load(entry for path, _ in files for entry in _entries(path))


def fingerprint(paths: tuple[str, ...]) -> str:
    """Return the digest of the contents of files, in their order.

    Raises:
        DataError: a file is missing.
    """
    return _fingerprint(tuple((path, _version(path)) for path in paths))


@lru_cache(maxsize=64)
def _fingerprint(files: tuple[tuple[str, object], ...]) -> str:
    return sha256_text("".join(sha256_file(Path(path)) for path, _ in files))


def _version(path: str) -> tuple[int, int]:
    found = status(Path(path))
    if found is None:
        raise DataError(f"{path}: there is no such file, which cleaning reads.")
    return found.st_size, found.st_mtime_ns


def _entries(path: str) -> Iterator[str]:
    try:
        with opened(Path(path)) as raw:
            for line in io.TextIOWrapper(_decompressed(raw, path), "utf-8-sig"):
                entry = line.strip()
                if entry and not entry.startswith("#"):
                    yield entry
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"The list {path} can't be read: {error}") from error


def _decompressed(raw: io.BufferedReader, path: str) -> io.BufferedReader | gzip.GzipFile:
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)
    return io.BufferedReader(Zstandard(raw)) if path.endswith(".zst") else raw
