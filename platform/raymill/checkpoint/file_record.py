"""Record of a checkpoint's file in the manifest, and the error of one that doesn't match it."""

from __future__ import annotations

from dataclasses import dataclass

from raymill.errors import CheckpointError


@dataclass(frozen=True)
class FileRecord:
    """Size and digest of one file of a checkpoint.

    Where `chunk_bytes` is 0, `sha256` is the digest of the file; else of the table at its end,
    which holds the digest of every so many bytes before it (`chunks.py`).
    """

    bytes: int
    sha256: str
    chunk_bytes: int = 0


class DamagedError(CheckpointError):
    """A file of a checkpoint is missing, or has other bytes than were committed.

    `location` is the checkpoint's folder, or its URI in an object store.
    """

    def __init__(self, message: str, location: str) -> None:
        super().__init__(message)
        self.location = location

    def __reduce__(self) -> tuple[type[DamagedError], tuple[str, str]]:
        return DamagedError, (str(self), self.location)
