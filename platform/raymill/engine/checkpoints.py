"""Checkpoints of a run as the loop sees them: begun at one step and settled at a later one.

The training state is copied to host memory; a background thread writes it while training continues.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch

from raymill.checkpoint.background import CPU_SHARE, BackgroundCommits, CommitOutcome
from raymill.checkpoint.fence import FencedError
from raymill.checkpoint.fragments import Fragments
from raymill.checkpoint.layout import merged
from raymill.checkpoint.manifest import CheckpointManifest
from raymill.checkpoint.remote import RemoteRun
from raymill.checkpoint.retention import RetentionPolicy, apply_retention, registered_checkpoints
from raymill.data.store.manifest import PreparedData
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup, agreed
from raymill.engine.learner import Learner
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.schedule import decay_start
from raymill.engine.trainer import Trainer
from raymill.errors import CheckpointError, StorageError


@dataclass(frozen=True)
class Position:
    """Position of a run: optimizer steps made, global samples drawn, tokens predicted."""

    step: int
    samples: int
    tokens: int


class Checkpoints:
    """Writer of a run's checkpoints. Every rank calls every method in step.

    `committed` is the number of samples drawn at the last checkpoint.
    """

    def __init__(
        self,
        resolved: ResolvedRun,
        prepared: Sequence[PreparedData],
        learners: Sequence[Learner],
        group: WorkerGroup,
        event_log: EventLog | None,
        committed: int,
        order_version: int,
    ) -> None:
        self.committed = committed
        self._order_version = order_version
        self._resolved = resolved
        self._prepared = prepared
        self._learners = learners
        self._group = group
        self._event_log = event_log
        self._remote = resolved.remote
        self._commits = BackgroundCommits(
            resolved.checkpoints, group.background_group(), self._retain, self._remote,
            # Hashing needs a core that training on the CPU is using, so the commit thread is throttled.
            share=CPU_SHARE if group.device.type == "cpu" else 1.0,
            # After a power cut, the event log must hold every step that a checkpoint has.
            before=event_log.sync if event_log is not None else None,
        )  # fmt: skip
        self._copy = HostCopy()
        self._samples = committed  # drawn at the checkpoint under way
        self._stall_s = 0.0  # time that the checkpoint under way has cost the loop

    def begin(
        self, position: Position, state: Mapping[str, object], guard: Mapping[str, object]
    ) -> None:
        """Copy the training state and start to write it. The checkpoint before it is settled first."""
        started = time.perf_counter()
        # The background thread writes one checkpoint at a time.
        self.settle(position.step, wait=True)
        resolved = self._resolved
        manifest = CheckpointManifest(
            step=position.step,
            samples=position.samples,
            tokens=position.tokens,
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
            order_version=self._order_version,
            files={},
        )
        trainers = [learner.trainer for learner in self._learners]
        layout = merged(trainer.checkpoint_layout() for trainer in trainers)
        # They become `committed` once this checkpoint is settled.
        self._samples = position.samples
        self._commits.start(manifest, layout, self._copy.take(trainers))
        self._stall_s = time.perf_counter() - started

    def settle(self, step: int, wait: bool = False, last: bool = False) -> CheckpointError | None:
        """Log the outcome of the checkpoint under way, if it has ended; `wait` until it has.

        A failed checkpoint costs an interval and not the run, with two exceptions: the last one, and one that
        was fenced off, because another process has taken the run over. These errors are returned or, with
        `wait`, raised on all ranks.
        """
        started = time.perf_counter()
        outcome = self._commits.take_outcome(wait)
        if outcome is None:
            return None
        if wait:
            self._stall_s += time.perf_counter() - started
        self._log(outcome, step)
        if outcome.directory is not None:
            self.committed = self._samples
            return None
        error = outcome.error
        assert isinstance(error, CheckpointError), "a commit without a directory has an error"
        if not (last or isinstance(error, FencedError)):
            return None
        if wait:
            raise agreed(error)
        return error

    def _log(self, outcome: CommitOutcome, step: int) -> None:
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
            stall_s=self._stall_s,
            bytes=outcome.size,
        )

    def _retain(self, _directory: Path) -> None:
        """Delete old checkpoints: on rank 0, in the background thread."""
        # A checkpoint that can't be deleted now is tried again after the next commit.
        with suppress(OSError, StorageError, CheckpointError):
            retain(self._resolved, self._remote)


def retain(resolved: ResolvedRun, remote: RemoteRun | None = None) -> None:
    """Delete the checkpoints that need not be kept, here and in the object store if the run is kept in one.

    The newest one from before the learning rate decays stays, so that a longer run can continue from there.
    """
    settings = resolved.job.checkpoint
    before = decay_start(resolved.job.schedule, resolved.total_steps)
    keep = RetentionPolicy(settings.keep_last, settings.keep_every, before)
    # A registered model version names its checkpoint, so that stays, too.
    protected = registered_checkpoints(resolved.run_dir)
    if remote is not None:
        remote.apply_retention(keep, protected)
    apply_retention(resolved.checkpoints, keep, protected)


class HostCopy:
    """Copy of a rank's training state in host memory: fp32 weights and moments of the elements it owns.

    The buffers are reused for every checkpoint; those that a GPU copies into are pinned.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, trainers: Iterable[Trainer]) -> Fragments:
        """Copy the state. The returned fragments are the buffers, which the next call overwrites."""
        fragments = []
        on_gpu = False
        for trainer in trainers:
            for owned in trainer.owned():
                arrays = {}
                for kind, view in owned.views(trainer.optimizer).items():
                    on_gpu |= view.is_cuda
                    buffer = self._buffer(f"{kind}/{owned.name}", view)
                    # Copies from a GPU overlap; they are waited for together, below.
                    buffer.copy_(view, non_blocking=True)
                    arrays[kind] = buffer.numpy()
                fragments.append((owned.name, owned.start, arrays))
        if on_gpu:
            torch.cuda.synchronize()
        return fragments

    def _buffer(self, name: str, view: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(name)
        # Pinned memory is slow to allocate, so buffers are kept from one checkpoint to the next.
        if buffer is None or buffer.numel() != view.numel():
            buffer = torch.empty(view.numel(), dtype=torch.float32, pin_memory=view.is_cuda)
            self._buffers[name] = buffer
        return buffer
