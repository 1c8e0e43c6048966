"""Which checkpoints a run has in an object store, and who may change that.

A store can't rename, but it can create an object only where there is none. The ledger is a row of numbered
objects, each of which holds the whole state after it: the token of who wrote it, and the checkpoints that are
committed. Only the last one counts. A change creates the next number, having read the one before: of two
writers at once, one meets the other's entry, reads it, and decides anew. Whoever takes a run over writes an
entry with the new token first, after which nobody with an older one gets past it.
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
    """A checkpoint in the store. `digest` is its manifest's, which proves everything else."""

    step: int
    folder: str  # below checkpoints/; no two commits share one
    digest: str


@dataclass(frozen=True)
class State:
    """What the ledger says: who writes the run, and its checkpoints, oldest first."""

    token: int = 0
    start: int = 0  # of workers, by that holder
    commits: tuple[Commit, ...] = ()


class Ledger:
    """A run's ledger, as workers of this start by the holder of `token` see and change it."""

    def __init__(self, bucket: Bucket, token: int, start: int = 0) -> None:
        self._bucket = bucket
        self._token = token
        self._start = start
        self._seen: tuple[int, State] | None = None  # entries stay as they are

    def state(self) -> State:
        """
        Raises:
            CheckpointError: the last entry can't be read.
            StorageError: the store can't be reached.
        """
        return self._last()[1]

    def hold(self) -> State:
        """Fence off every holder of an older token, and workers of an earlier start; returns the state.

        Raises:
            FencedError: a newer one has done so.
        """
        return self._change(lambda commits: commits)

    def add(self, commit: Commit) -> State:
        """Commit a checkpoint. Who made it went on from below its step: others from there on are no part of it.

        Raises:
            FencedError: the run is another's.
        """
        return self._change(
            lambda commits: (*(old for old in commits if old.step < commit.step), commit)
        )

    def remove(self, folders: set[str]) -> State:
        """These checkpoints are none any more.

        Raises:
            FencedError: the run is another's.
        """
        return self._change(
            lambda commits: tuple(old for old in commits if old.folder not in folders)
        )

    def check(self) -> None:
        """
        Raises:
            FencedError: the run is another's.
        """
        self._refuse(self.state())

    def check_holder(self) -> None:
        """
        Raises:
            FencedError: another process holds the run, whichever workers of this one's have been started.
        """
        state = self.state()
        if state.token > self._token:
            self._refuse(state)

    def _refuse(self, state: State) -> None:
        if (state.token, state.start) > (self._token, self._start):
            raise FencedError(
                f"another process has taken this run over, or other workers have been started (token "
                f"{self._token}.{self._start} doesn't hold it any more, {state.token}.{state.start} does); "
                "what was committed since stands, this one has ended"
            )

    def _change(self, change: Callable[[tuple[Commit, ...]], tuple[Commit, ...]]) -> State:
        nonce = uuid.uuid4().hex
        while True:
            number, state = self._last()
            self._refuse(state)
            commits = tuple(sorted(change(state.commits), key=lambda commit: commit.step))
            changed = State(self._token, self._start, commits)
            body = json.dumps({"nonce": nonce, **asdict(changed)}, indent=1).encode()
            key = _key(number + 1)
            # What is there may be our own, where the answer to a request was lost.
            if self._bucket.put_new(key, body) or self._bucket.get(key) == body:
                return changed

    def _last(self) -> tuple[int, State]:
        after = _key(self._seen[0]) if self._seen else None
        keys = sorted(self._bucket.sizes(_FOLDER, after))
        if not keys:
            return self._seen or (0, State())
        data = self._bucket.get(keys[-1])
        try:
            if data is None:
                raise StorageError(f"{self._bucket.uri}: {keys[-1]} vanished while it was read")
            body = json.loads(data)
            commits = tuple(Commit(**commit) for commit in body["commits"])
            number = int(keys[-1].rpartition("/")[2].split(".")[0])
            self._seen = number, State(body["token"], body["start"], commits)
            return self._seen
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self._bucket.uri}/{keys[-1]} can't be read ({error}): the entry before it says what was "
                "committed until then; delete the damaged one to go on from there"
            ) from error


def _key(number: int) -> str:
    return f"{_FOLDER}/{number:08d}.json"
