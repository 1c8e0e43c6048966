"""Commits in the background: the training loop only copies its state; a thread writes and votes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raymill.checkpoint.commit import CommitGroup, commit
from raymill.checkpoint.fence import FencedError
from raymill.checkpoint.fragments import Fragments
from raymill.checkpoint.layout import Layout
from raymill.checkpoint.manifest import CheckpointManifest
from raymill.checkpoint.remote import RemoteRun
from raymill.errors import CheckpointError

TRIES = 3
# Seconds before the second try; doubled before each later one.
PAUSE_S = 1.0
# Share of a core for a commit while training uses all cores; raised if the commit would be late.
CPU_SHARE = 0.05
# A commit should end after this share of the time between two commits.
_DONE_BY = 0.5


@dataclass(frozen=True)
class CommitOutcome:
    """Result of a commit: its directory, or the error of its last try.

    `seconds` is the time from start to end; `size` counts the bytes that this rank wrote.
    """

    step: int
    seconds: float
    size: int
    directory: Path | None = None
    error: BaseException | None = None


class BackgroundCommits:
    """One commit at a time, in a thread of each rank. Every rank calls every method in step.

    `group` belongs to the thread, so that its messages can't mix with those of training. `before`
    is called in the thread ahead of each commit, `committed` on rank 0 after each one that
    succeeded. Hashing needs a core that CPU training is using, so the thread is throttled: it works
    for `share` of the time, or as much as it takes to finish halfway to the next commit, until
    somebody waits for it.
    """

    def __init__(
        self,
        checkpoints: Path,
        group: CommitGroup,
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
        # Seconds of CPU time that the current commit has used.
        self._worked = 0.0
        self._started: float | None = None
        self._thread: threading.Thread | None = None
        self._outcome: CommitOutcome | None = None

    @property
    def busy(self) -> bool:
        """True while a commit is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self,
        manifest: CheckpointManifest,
        layout: Layout,
        fragments: Fragments,
    ) -> None:
        """Start a commit of these fragments, which nobody may change until it ends.

        The outcome of the previous commit must have been taken.
        """
        assert self._thread is None, "take the outcome of the commit before this one first"
        # Nobody waits for the new commit yet, so it is throttled again.
        self._waited_for.clear()
        now = time.perf_counter()
        if self._started is not None:
            # The last commit's CPU time predicts how fast this one must work.
            needed = self._worked / (_DONE_BY * (now - self._started))
            self._share = min(1.0, max(self._least, needed))
        self._started, self._worked = now, 0.0
        self._thread = threading.Thread(
            target=self._run, args=(manifest, layout, fragments), name="raymill-commit", daemon=True
        )
        self._thread.start()

    def take_outcome(self, wait: bool) -> CommitOutcome | None:
        """Return the outcome of a commit that ended since the last call; with `wait`, wait for the
        current one.

        Raises:
            Exception: the commit failed for a reason outside of it, such as a lost rank.
        """
        if self._thread is None or (self.busy and not wait):
            return None
        self.stop_throttling()
        self._thread.join()
        self._thread = None
        outcome, self._outcome = self._outcome, None
        assert outcome is not None, "the commit thread ended without an outcome"
        if outcome.error is not None and not isinstance(outcome.error, CheckpointError):
            raise outcome.error
        return outcome

    def stop_throttling(self) -> None:
        """Stop throttling the current commit, because somebody will wait for it."""
        self._waited_for.set()

    def _throttle(self, worked: float) -> None:
        self._worked += worked
        if self._share < 1:
            # Waiting on the event ends the pause as soon as somebody waits for the commit.
            self._waited_for.wait(worked * (1 / self._share - 1))

    def _run(
        self,
        manifest: CheckpointManifest,
        layout: Layout,
        fragments: Fragments,
    ) -> None:
        started = time.perf_counter()
        arrays_of_rank = list(fragments)
        size = sum(array.nbytes for _, _, arrays in arrays_of_rank for array in arrays.values())
        directory, error = None, None
        try:
            if self._before is not None:
                self._before()
            directory = self._try(manifest, layout, arrays_of_rank)
        # Whatever it is, the training loop must learn of it: it waits for this thread.
        except BaseException as raised:
            error = raised
        self._outcome = CommitOutcome(
            manifest.step, time.perf_counter() - started, size, directory, error
        )

    def _try(
        self,
        manifest: CheckpointManifest,
        layout: Layout,
        fragments: Fragments,
    ) -> Path:
        """Try the commit up to TRIES times; every rank sees the same result of a try, so all retry
        or none."""
        for left in reversed(range(TRIES)):
            try:
                directory = commit(
                    self._checkpoints, manifest, layout, fragments, self._group, self._remote,
                    throttle=self._throttle,
                )  # fmt: skip
            # Another try can't succeed, since the run is another process's.
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
