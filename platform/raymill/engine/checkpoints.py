"""A run's checkpoints as the loop sees them: begun at a step, and settled at a later one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymill.checkpoint.background import CPU_SHARE, BackgroundCommits, CommitOutcome
from raymill.checkpoint.fence import FencedError
from raymill.checkpoint.manifest import CheckpointManifest
from raymill.checkpoint.remote import RemoteRun
from raymill.checkpoint.retention import RetentionPolicy, apply_retention, registered_checkpoints
from raymill.data.store.manifest import PreparedData
from raymill.engine.agreement import agreed
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.engine.host_copy import HostCopy
from raymill.engine.learner import Learner
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.schedule import decay_start
from raymill.errors import CheckpointError, StorageError


@dataclass(frozen=True)
class Position:
    """Where a run is: optimizer steps made, global samples drawn, tokens predicted."""

    step: int
    samples: int
    tokens: int


class Checkpoints:
    """Every rank calls every method in step. `committed` counts the samples drawn at the last checkpoint."""

    def __init__(
        self,
        resolved: ResolvedRun,
        prepared: Sequence[PreparedData],
        learners: Sequence[Learner],
        group: WorkerGroup,
        event_log: EventLog | None,
        committed: int,
    ) -> None:
        self.committed = committed
        self._resolved = resolved
        self._prepared = prepared
        self._learners = learners
        self._group = group
        self._event_log = event_log
        self._remote = resolved.remote
        self._commits = BackgroundCommits(
            resolved.checkpoints, group.beside(), self._retain, self._remote,
            share=CPU_SHARE if group.device.type == "cpu" else 1.0,
            # A power cut mustn't leave steps committed of which the journal doesn't know.
            before=event_log.sync if event_log is not None else None,
        )  # fmt: skip
        self._copy = HostCopy()
        self._samples = committed  # at the one under way
        self._stall = 0.0  # seconds that it cost the loop

    def begin(self, at: Position, state: Mapping[str, Any], guard: Mapping[str, Any]) -> None:
        """Copy everything as it is; it is written while training goes on. The one before is settled first."""
        began = time.perf_counter()
        self.settle(at.step, wait=True)
        resolved = self._resolved
        manifest = CheckpointManifest(
            step=at.step,
            samples=at.samples,
            tokens=at.tokens,
            world_size=self._group.world_size,
            attempt=self._event_log.attempt if self._event_log else 0,
            config=resolved.config,
            config_digest=resolved.config_digest,
            data_digests=tuple(data.manifest.digest for data in self._prepared),
            tokenizer_fingerprint=self._prepared[0].manifest.tokenizer.fingerprint,
            code_commit=resolved.code_commit,
            parent=resolved.parent,
            parent_digest=resolved.parent_digest,
            model_digests=resolved.model_digests,
            updates={learner.prefix: learner.trainer.updates for learner in self._learners},
            state=deepcopy(state),
            guard=guard,
            token=resolved.token,
            start=resolved.start,
            files={},
        )
        trainers = [learner.trainer for learner in self._learners]
        shapes = {name: shape for trainer in trainers for name, shape in trainer.shapes.items()}
        self._samples = at.samples
        self._commits.start(manifest, shapes, self._copy.take(trainers))
        self._stall = time.perf_counter() - began

    def settle(self, step: int, wait: bool = False, last: bool = False) -> CheckpointError | None:
        """Tell how the one under way ended, if it has; `wait` for it. One that failed costs an interval and
        not the run, but for the last one, and but for a run that is another's by now: that error is
        returned, or raised where this rank waited, as all ranks do then."""
        began = time.perf_counter()
        outcome = self._commits.take_outcome(wait)
        if outcome is None:
            return None
        if wait:
            self._stall += time.perf_counter() - began
        self._tell(outcome, step)
        if outcome.directory is not None:
            self.committed = self._samples
            return None
        error = outcome.error
        assert isinstance(error, CheckpointError)
        if not (last or isinstance(error, FencedError)):
            return None
        if wait:
            raise agreed(error)
        return error

    def _tell(self, outcome: CommitOutcome, step: int) -> None:
        if self._event_log is None:
            return
        if outcome.directory is None:
            self._event_log.write("message", step, text=str(outcome.error))
            return
        self._event_log.write(
            "checkpoint",
            outcome.step,
            path=str(outcome.directory.relative_to(self._resolved.run_dir)),
            seconds=outcome.seconds,
            stall_s=self._stall,
            bytes=outcome.size,
        )

    def _retain(self, _directory: Path) -> None:
        """On rank 0, behind the training. What can't be deleted is tried again next time."""
        with suppress(OSError, StorageError, CheckpointError):
            retain(self._resolved, self._remote)


def retain(resolved: ResolvedRun, remote: RemoteRun | None = None) -> None:
    """Delete the checkpoints that may go: in the object store, if the run is kept in one, and here.

    The newest from before the learning rate decays stays: a longer run goes on from there.
    """
    settings = resolved.job.checkpoint
    before = decay_start(resolved.job.schedule, resolved.total_steps)
    keep = RetentionPolicy(settings.keep_last, settings.keep_every, before)
    protected = registered_checkpoints(resolved.run_dir)
    if remote is not None:
        remote.apply_retention(keep, protected)
    apply_retention(resolved.checkpoints, keep, protected)
