"""Commits behind the training: the loop pays for a copy of its state, writing and voting happen meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raymill.checkpoint.commit import Group, commit
from raymill.checkpoint.fence import FencedError
from raymill.checkpoint.fragments import Fragments
from raymill.checkpoint.manifest import Manifest
from raymill.checkpoint.remote import RemoteRun
from raymill.errors import CheckpointError

TRIES = 3
PAUSE_S = 1.0  # before the second try, doubled before each one after it
CPU_SHARE = 0.05  # of a core, where training has them all; more if it wouldn't be done in time
_DONE_BY = 0.5  # of the time between two


@dataclass(frozen=True)
class Outcome:
    """How a commit ended: `directory`, or the error of its last try."""

    step: int
    seconds: float  # from its beginning to the end
    size: int  # bytes that this rank wrote
    directory: Path | None = None
    error: BaseException | None = None


class BackgroundCommits:
    """One commit at a time, in a thread of each rank. Every rank calls every method in step.

    `group` is the thread's own, so that its messages can't meet the training's. `before` is called in the
    thread ahead of each, `committed` on rank 0 after each one that succeeded. The thread works for `share` of
    the time, or as much as is needed to be done halfway to the next, for as long as nobody waits for it:
    digests take a core that training on the CPU needs.
    """

    def __init__(
        self,
        checkpoints: Path,
        group: Group,
        committed: Callable[[Path], None],
        remote: RemoteRun | None = None,
        share: float = 1.0,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self._group = group
        self._remote = remote
        self._committed = committed
        self._before = before
        self._least = self._share = share
        self._waited_for = threading.Event()
        self._worked = 0.0  # seconds of the core, for the one under way
        self._began: float | None = None
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def begin(
        self, manifest: Manifest, shapes: Mapping[str, Sequence[int]], fragments: Fragments
    ) -> None:
        """Commit these fragments, which nobody else may change meanwhile; the one before has ended and its
        outcome was taken."""
        assert self._thread is None, "take the outcome of the commit before this one first"
        self._waited_for.clear()
        now = time.perf_counter()
        if self._began is not None:
            needed = self._worked / (_DONE_BY * (now - self._began))
            self._share = min(1.0, max(self._least, needed))
        self._began, self._worked = now, 0.0
        self._thread = threading.Thread(
            target=self._run, args=(manifest, shapes, fragments), name="raymill-commit", daemon=True
        )
        self._thread.start()

    def take(self, wait: bool) -> Outcome | None:
        """The outcome of a commit that ended since the last call; `wait` for the one under way.

        Raises:
            Exception: the commit broke off in a way that isn't its own, such as a lost rank.
        """
        if self._thread is None or (self.busy and not wait):
            return None
        self.hurry()
        self._thread.join()
        self._thread = None
        outcome, self._outcome = self._outcome, None
        assert outcome is not None
        if outcome.error is not None and not isinstance(outcome.error, CheckpointError):
            raise outcome.error
        return outcome

    def hurry(self) -> None:
        """Somebody will wait for the one under way."""
        self._waited_for.set()

    def _rest(self, worked: float) -> None:
        self._worked += worked
        if self._share < 1:
            self._waited_for.wait(worked * (1 / self._share - 1))

    def _run(
        self, manifest: Manifest, shapes: Mapping[str, Sequence[int]], fragments: Fragments
    ) -> None:
        began = time.perf_counter()
        own = list(fragments)
        size = sum(array.nbytes for _, _, arrays in own for array in arrays.values())
        directory, error = None, None
        try:
            if self._before is not None:
                self._before()
            directory = self._try(manifest, shapes, own)
        except BaseException as raised:  # told to the loop, which waits for this thread
            error = raised
        self._outcome = Outcome(manifest.step, time.perf_counter() - began, size, directory, error)

    def _try(
        self, manifest: Manifest, shapes: Mapping[str, Sequence[int]], fragments: Fragments
    ) -> Path:
        """All ranks hear the same of each try, so that all try again, or none."""
        for left in reversed(range(TRIES)):
            try:
                directory = commit(
                    self._checkpoints, manifest, shapes, fragments, self._group, self._remote,
                    rest=self._rest,
                )  # fmt: skip
            except FencedError:
                raise
            except CheckpointError:
                if not left:
                    raise
                time.sleep(PAUSE_S * 2 ** (TRIES - 1 - left))
            else:
                if self._group.rank == 0:
                    self._committed(directory)
                return directory
        raise AssertionError("the last try returns or raises")
