"""Ledger of a run's checkpoints in an object store, and the fence that protects it.

A store can't rename, but it can create an object only where there is none. The ledger is a sequence
of numbered objects, each of which holds the whole state after it: the writer's token, and the
committed checkpoints. Only the last one counts. A change reads the last entry and creates the next
number: of two writers at once, one finds the other's entry, reads it, and decides again. A process
that takes a run over first writes an entry with its new token; after that no holder of an older
token can add one.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass

from raymill.checkpoint.fence import FencedError
from raymill.errors import CheckpointError, StorageError
from raymill.storage.bucket import Bucket

_FOLDER = "ledger"


@dataclass(frozen=True)
class Commit:
    """Checkpoint in the store.

    `folder` lies below checkpoints/, and no two commits share one. `digest` is the manifest's,
    which proves everything else.
    """

    step: int
    folder: str
    digest: str


@dataclass(frozen=True)
class LedgerState:
    """State of the ledger: the run's holder and its start of workers, and the checkpoints, oldest
    first."""

    token: int = 0
    start: int = 0
    commits: tuple[Commit, ...] = ()


class Ledger:
    """Ledger of a run, as workers of this start by the holder of `token` read and change it."""

    def __init__(self, bucket: Bucket, token: int, start: int = 0) -> None:
        self._bucket = bucket
        self._token = token
        self._start = start
        # The last entry that was read; entries never change, so it need not be read again.
        self._seen: tuple[int, LedgerState] | None = None

    def state(self) -> LedgerState:
        """Read the current state.

        Raises:
            CheckpointError: the last entry can't be read.
            StorageError: the store can't be reached.
        """
        return self._last()[1]

    def fence_off(self) -> LedgerState:
        """Fence off every holder of an older token, and workers of an earlier start; return the
        state.

        Raises:
            FencedError: a newer holder or start has done so.
        """
        return self._change(lambda commits: commits)

    def add(self, commit: Commit) -> LedgerState:
        """Commit a checkpoint, and drop those of its step or later, since its writer continued from
        below them.

        Raises:
            FencedError: another process holds the run.
        """
        return self._change(
            lambda commits: (*(old for old in commits if old.step < commit.step), commit)
        )

    def remove(self, folders: set[str]) -> LedgerState:
        """Remove checkpoints from the ledger.

        Raises:
            FencedError: another process holds the run.
        """
        return self._change(
            lambda commits: tuple(old for old in commits if old.folder not in folders)
        )

    def check(self) -> None:
        """Check that this writer may still commit.

        Raises:
            FencedError: another process holds the run, or newer workers have been started.
        """
        self._refuse(self.state())

    def check_holder(self) -> None:
        """Check that this process still holds the run, whichever of its starts of workers is the
        newest.

        Raises:
            FencedError: another process holds the run.
        """
        state = self.state()
        if state.token > self._token:
            self._refuse(state)

    def _refuse(self, state: LedgerState) -> None:
        if (state.token, state.start) > (self._token, self._start):
            raise FencedError(
                f"another process has taken this run over, or newer workers have been started (token "
                f"{self._token}.{self._start} no longer holds it, {state.token}.{state.start} does); "
                "checkpoints that they committed stay, and this process ends"
            )

    def _change(self, change: Callable[[tuple[Commit, ...]], tuple[Commit, ...]]) -> LedgerState:
        # The nonce distinguishes this entry from an equal one of another process.
        nonce = uuid.uuid4().hex
        while True:
            number, state = self._last()
            self._refuse(state)
            # The change is applied to the newest state, which another writer may have just written.
            commits = tuple(sorted(change(state.commits), key=lambda commit: commit.step))
            changed = LedgerState(self._token, self._start, commits)
            body = json.dumps({"nonce": nonce, **asdict(changed)}, indent=1).encode()
            key = _key(number + 1)
            # An existing entry may be our own, if the answer to the request was lost.
            if self._bucket.put_new(key, body) or self._bucket.get(key) == body:
                return changed

    def _last(self) -> tuple[int, LedgerState]:
        after = _key(self._seen[0]) if self._seen else None
        keys = sorted(self._bucket.sizes(_FOLDER, after))
        if not keys:
            return self._seen or (0, LedgerState())
        data = self._bucket.get(keys[-1])
        try:
            if data is None:
                # Entries are never deleted, so this is a failure of the store.
                raise StorageError(f"{self._bucket.uri}: {keys[-1]} vanished while it was read")
            body = json.loads(data)
            commits = tuple(Commit(**commit) for commit in body["commits"])
            number = int(keys[-1].rpartition("/")[2].split(".")[0])
            self._seen = number, LedgerState(body["token"], body["start"], commits)
            return self._seen
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self._bucket.uri}/{keys[-1]} can't be read ({error}): the entry before it lists the "
                "checkpoints until then; delete the damaged entry to continue from there"
            ) from error


def _key(number: int) -> str:
    return f"{_FOLDER}/{number:08d}.json"
