"""Where a run's fencing tokens lie, each with its holder: a folder, or an object store. Of those who want a
token, both give it to one."""

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
    """A process that holds a run. `machine` tells process numbers of one kernel and container apart."""

    host: str
    machine: str
    pid: int
    started: float  # of the process; since the machine's, so that a clock put right changes nothing
    user: str
    command: str
    since: str
    nonce: str = ""  # tells it from another of the same process
    beats: int = 0
    released: bool = False

    def spelled(self) -> str:
        """For the user: who it is."""
        return (
            f"process {self.pid} of {self.user} on {self.host}, since {self.since} ({self.command})"
        )

    def to_bytes(self) -> bytes:
        """As it is kept."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def of_bytes(cls, data: bytes) -> Holder | None:
        """What was kept; None where it can't be read."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None


class Tokens(Protocol):
    """What a lease needs of where it lies."""

    def newest(self) -> tuple[int, Holder | None]:
        """The highest token given out, 0 for none, and its holder; None for one that can't be read."""
        ...

    def claim(self, token: int, holder: Holder) -> bool:
        """Whether this holder got the token, which nobody had."""
        ...

    def write(self, token: int, holder: Holder) -> None:
        """Its holder as it is now."""
        ...

    def forget(self, token: int) -> None:
        """Tokens up to this one are of no use any more."""
        ...


class LinkedTokens:
    """Files in a folder, made by linking."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def newest(self) -> tuple[int, Holder | None]:
        while True:
            tokens = self._given()
            if not tokens:
                return 0, None
            try:
                return tokens[-1], Holder.of_bytes(read_bytes(self._path(tokens[-1])))
            except FileNotFoundError:  # a newer holder has just deleted it
                continue

    def claim(self, token: int, holder: Holder) -> bool:
        draft = self._folder / f"draft-{uuid.uuid4().hex}"
        draft.write_bytes(holder.to_bytes())
        fsync_path(draft)
        try:
            os.link(draft, self._path(token))
        except FileExistsError:
            return (
                draft.stat().st_nlink == 2
            )  # on NFS it may be our own, made by a request sent twice
        finally:
            draft.unlink()
        fsync_path(self._folder)
        return True

    def write(self, token: int, holder: Holder) -> None:
        write_atomic(self._path(token), holder.to_bytes().decode())

    def forget(self, token: int) -> None:
        for old in self._given():
            if old <= token:
                self._path(old).unlink(missing_ok=True)

    def _given(self) -> list[int]:
        # A folder that is gone isn't one without tokens, whose holder would have lost the run.
        listed = retried(self._folder, lambda: os.listdir(self._folder))
        names = (_NAME.fullmatch(name) for name in listed)
        return sorted(int(match[1]) for match in names if match)

    def _path(self, token: int) -> Path:
        return self._folder / f"{token:08d}.json"


class StoredTokens:
    """Objects in a bucket, made by conditional creation."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def newest(self) -> tuple[int, Holder | None]:
        while True:
            tokens = self._given()
            if not tokens:
                return 0, None
            data = self._bucket.get(self._key(tokens[-1]))
            if data is not None:  # or else a newer holder has just deleted it
                return tokens[-1], Holder.of_bytes(data)

    def claim(self, token: int, holder: Holder) -> bool:
        body = holder.to_bytes()
        # What is there may be our own, where the answer to a request was lost.
        return self._bucket.put_new(self._key(token), body) or (
            self._bucket.get(self._key(token)) == body
        )

    def write(self, token: int, holder: Holder) -> None:
        self._bucket.put(self._key(token), holder.to_bytes())

    def forget(self, token: int) -> None:
        self._bucket.delete(self._key(old) for old in self._given() if old <= token)

    def _given(self) -> list[int]:
        names = (_NAME.fullmatch(key.rpartition("/")[2]) for key in self._bucket.sizes("lease"))
        return sorted(int(match[1]) for match in names if match)

    def _key(self, token: int) -> str:
        return f"lease/{token:08d}.json"
