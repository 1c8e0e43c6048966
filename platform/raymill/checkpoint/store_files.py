"""Files of a checkpoint in an object store, read by range."""

from __future__ import annotations

from raymill.storage.bucket import Bucket


class StoreFiles:
    """Files in a folder of an object store; see `CheckpointFiles`."""

    def __init__(self, uri: str) -> None:
        self.location = uri
        self._bucket = Bucket(uri)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> int:
        """Fill the buffer with an object's bytes from an offset on; return how many there were."""
        return self._bucket.read_range(name, offset, buffer)
