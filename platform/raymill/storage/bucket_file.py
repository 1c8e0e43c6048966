"""Objects of a store as files that are read by ranges, from any position on."""

from __future__ import annotations

import io
import os
from functools import lru_cache
from typing import TYPE_CHECKING

from raymill.reading import PositionedFile
from raymill.storage.bucket import Bucket, StoredObject

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Bytes of one request. A request takes tens of milliseconds, whatever it asks for.
REQUEST_BYTES = 8 * 2**20


def find_object(uri: str) -> StoredObject | None:
    """Return what the store says about an object; None where there is no such object.

    Raises:
        StorageError: the store fails, or refuses the credentials.
    """
    bucket, key = object_of(uri)
    return bucket.find(key)


def open_object(uri: str) -> io.BufferedReader:
    """Open an object to read it by ranges of REQUEST_BYTES, all of one version.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: the store fails; reading raises it, too.
    """
    found = find_object(uri)
    if found is None:
        raise FileNotFoundError(f"{uri}: there is no such object")
    return io.BufferedReader(_ObjectFile(object_of(uri)[0], found), REQUEST_BYTES)


def object_of(uri: str) -> tuple[Bucket, str]:
    """Return the bucket of an address, and the key in it."""
    scheme, _, path = uri.partition("://")
    name, _, key = path.partition("/")
    return _bucket(f"{scheme}://{name}", os.getpid()), key


@lru_cache(maxsize=8)
def _bucket(uri: str, process: int) -> Bucket:
    # A client's threads don't survive a fork, so that each process has clients of its own.
    return Bucket(uri)


class _ObjectFile(PositionedFile):
    """File whose reads are requests; the client repeats those that fail."""

    def __init__(self, bucket: Bucket, stored: StoredObject) -> None:
        super().__init__()
        self._bucket, self._stored = bucket, stored

    @property
    def _size(self) -> int:
        return self._stored.size

    def readinto(self, buffer: WriteableBuffer) -> int:
        left = max(0, self._stored.size - self._position)
        view = memoryview(buffer).cast("B")[:left]
        key, version = self._stored.key, self._stored.version
        count = self._bucket.read_range(key, self._position, view, version)
        self._position += count
        return count
