"""Storage of a run's fencing tokens, each with its holder: a folder, or an object store.

Both guarantee that of several processes that claim a token exactly one gets it.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from raymill.durable import fsync_path, write_atomic
from raymill.reading import read_bytes, retried
from raymill.storage.bucket import Bucket

_NAME = re.compile(r"(\d{8})\.json")


@dataclass(frozen=True)
class Holder:
    """Process that holds a run.

    `machine` distinguishes process numbers of one kernel and container; `started` counts from the
    machine's start, so that a corrected clock changes nothing; `nonce` distinguishes several
    holders in one process.
    """

    host: str
    machine: str
    pid: int
    started: float
    user: str
    command: str
    since: str
    nonce: str = ""
    beats: int = 0
    released: bool = False

    def describe(self) -> str:
        """Describe the holder to the user."""
        return (
            f"process {self.pid} of {self.user} on {self.host}, since {self.since} ({self.command})"
        )

    def to_bytes(self) -> bytes:
        """Return the record as stored."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Holder | None:
        """Read a stored record; None where it can't be read."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None


class FencingTokens(Protocol):
    """Operations that a lease needs of the storage of its tokens."""

    def newest(self) -> tuple[int, Holder | None]:
        """Return the highest token that was claimed (0 for none) and its holder, None if
        unreadable."""
        ...

    def claim(self, token: int, holder: Holder) -> bool:
        """Claim a token that nobody has; return whether this holder got it."""
        ...

    def write(self, token: int, holder: Holder) -> None:
        """Store the current record of a token's holder."""
        ...

    def forget(self, token: int) -> None:
        """Delete the tokens up to this one, which are no longer needed."""
        ...


class FolderTokens:
    """Tokens as files in a folder, claimed by creating a hard link."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def newest(self) -> tuple[int, Holder | None]:
        while True:
            tokens = self._claimed()
            if not tokens:
                return 0, None
            try:
                return tokens[-1], Holder.from_bytes(read_bytes(self._path(tokens[-1])))
            # A newer holder has just deleted it.
            except FileNotFoundError:
                continue

    def claim(self, token: int, holder: Holder) -> bool:
        draft = self._folder / f"draft-{uuid.uuid4().hex}"
        draft.write_bytes(holder.to_bytes())
        fsync_path(draft)
        try:
            # A hard link fails if its name exists, on NFS too, and appears with its full contents.
            os.link(draft, self._path(token))
        except FileExistsError:
            # On NFS the existing link may be our own, created by a request that was sent twice.
            return draft.stat().st_nlink == 2
        finally:
            draft.unlink()
        fsync_path(self._folder)
        return True

    def write(self, token: int, holder: Holder) -> None:
        write_atomic(self._path(token), holder.to_bytes().decode())

    def forget(self, token: int) -> None:
        for old in self._claimed():
            if old <= token:
                self._path(old).unlink(missing_ok=True)

    def _claimed(self) -> list[int]:
        # A missing folder is an error and not an empty list, by which the holder would lose the run.
        listed = retried(self._folder, lambda: os.listdir(self._folder))
        names = (_NAME.fullmatch(name) for name in listed)
        return sorted(int(match[1]) for match in names if match)

    def _path(self, token: int) -> Path:
        return self._folder / f"{token:08d}.json"


class BucketTokens:
    """Tokens as objects in a bucket, claimed by conditional creation."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def newest(self) -> tuple[int, Holder | None]:
        while True:
            tokens = self._claimed()
            if not tokens:
                return 0, None
            data = self._bucket.get(self._key(tokens[-1]))
            # Otherwise a newer holder has just deleted it.
            if data is not None:
                return tokens[-1], Holder.from_bytes(data)

    def claim(self, token: int, holder: Holder) -> bool:
        body = holder.to_bytes()
        # An existing object may be our own, if the answer to the request was lost.
        return self._bucket.put_new(self._key(token), body) or (
            self._bucket.get(self._key(token)) == body
        )

    def write(self, token: int, holder: Holder) -> None:
        self._bucket.put(self._key(token), holder.to_bytes())

    def forget(self, token: int) -> None:
        self._bucket.delete(self._key(old) for old in self._claimed() if old <= token)

    def _claimed(self) -> list[int]:
        names = (_NAME.fullmatch(key.rpartition("/")[2]) for key in self._bucket.sizes("lease"))
        return sorted(int(match[1]) for match in names if match)

    def _key(self, token: int) -> str:
        return f"lease/{token:08d}.json"
