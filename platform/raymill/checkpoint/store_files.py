"""Files of a checkpoint in an object store, read by range, and shared by the ranks of a node."""

from __future__ import annotations

import fcntl
import uuid
from pathlib import Path

import numpy as np

from raymill.checkpoint.verified_files import READ_BYTES
from raymill.reading import is_file, read_range
from raymill.storage.bucket import Bucket


class StoreFiles:
    """Files in a folder of an object store; see `CheckpointFiles`.

    With a `cache`, a folder on this node, files are read in aligned blocks, which are kept there:
    ranks of one node that need neighboring bytes, or under ZeRO-0 the same ones, read them once.
    """

    def __init__(self, uri: str, cache: Path | None = None) -> None:
        self.location = uri
        self._bucket = Bucket(uri)
        self._cache = cache

    def read_into(self, name: str, offset: int, buffer: memoryview) -> int:
        """Fill the buffer with an object's bytes from an offset on; return how many there were."""
        if self._cache is None:
            return self._bucket.read_range(name, offset, buffer)
        count = 0
        while count < len(buffer):
            block, inside = divmod(offset + count, READ_BYTES)
            wanted = buffer[count : count + READ_BYTES - inside]
            got = read_range(self._cached(self._cache, name, block), inside, wanted)
            count += got
            if got < len(wanted):
                break
        return count

    def _cached(self, cache: Path, name: str, block: int) -> Path:
        """Return the file of a block on this node, which is downloaded if it isn't there."""
        path = cache / f"{name}.{block}"
        if is_file(path):
            return path
        cache.mkdir(parents=True, exist_ok=True)
        # The kernel releases the lock of a rank that dies while it downloads.
        with (cache / f"{name}.{block}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_file(path):
                data = np.empty(READ_BYTES, np.uint8).data
                count = self._bucket.read_range(name, block * READ_BYTES, data)
                temporary = cache / f"{uuid.uuid4().hex}.tmp"
                temporary.write_bytes(data[:count])
                temporary.replace(path)
        return path
