"""Start of a run: from scratch, from its own newest checkpoint, or from another run's.

Imports no torch, since the driver uses it as well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raymill.checkpoint.fence import advance_fence
from raymill.checkpoint.manifest import CheckpointManifest
from raymill.checkpoint.resume import (
    VerifiedCheckpoint,
    contradictions,
    find_fork,
    newest_verified,
    parse_fork,
)
from raymill.checkpoint.retention import committed_steps, newest_until, remove_leftovers, set_aside
from raymill.data.store.blocks import SourceShape
from raymill.data.store.manifest import PreparedData, load_prepared
from raymill.data.store.order import Order, SampleOrder
from raymill.data.store.order_v1 import OrderV1
from raymill.engine.guard import windows_from
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.schedule import decay_start, learning_rate_factor
from raymill.errors import ConfigError
from raymill.plan.batch import total_steps
from raymill.plan.mixture import change_step, max_epochs, mixture_changes
from raymill.schema.identity import CHANGEABLE_ON_FORK, CHANGEABLE_ON_RESUME
from raymill.schema.jobs import TrainJob

logger = logging.getLogger(__name__)


def open_data(resolved: ResolvedRun) -> list[PreparedData]:
    """Verify the manifests of the prepared folders."""
    return [load_prepared(folder) for folder in resolved.folders]


def order_of(job: TrainJob, prepared: Sequence[PreparedData], weights: Sequence[float]) -> Order:
    """Derive the order of all samples of a new run."""
    changes = mixture_changes(job.data, total_steps(job), job.train.global_batch)
    return Order(
        _sources(job, prepared, weights),
        job.run.seed,
        job.data.window_row_groups,
        job.train.global_batch,
        changes,
    )


def open_order(
    resolved: ResolvedRun, prepared: Sequence[PreparedData], start: StartPoint
) -> SampleOrder:
    """Derive the order of all samples, of the version that the run started with.

    Raises:
        DataError: the sources' `max_epochs` are reached before the run's end.
    """
    job, weights = resolved.job, resolved.weights
    if start.order_version == OrderV1.version:
        sources = _sources(job, prepared, weights)
        return OrderV1(sources, job.run.seed, job.data.window_row_groups, job.train.global_batch)
    order = order_of(job, prepared, weights)
    left = resolved.total_steps - start.step
    order.mixture.check(start.samples + left * job.train.global_batch)
    return order


def _sources(
    job: TrainJob, prepared: Sequence[PreparedData], weights: Sequence[float]
) -> list[SourceShape]:
    limits = max_epochs(job.data)
    return [
        SourceShape(
            name=data.folder.name,
            weight=weight,
            row_group_rows=data.manifest.row_group_rows,
            shard_rows=data.manifest.splits["train"].shards.column("rows"),
            max_epochs=limit,
        )
        for data, weight, limit in zip(prepared, weights, limits, strict=True)
    ]


@dataclass(frozen=True)
class StartPoint:
    """Start of a run: fresh, or from a checkpoint, its own (`resumed`) or another run's."""

    checkpoint: VerifiedCheckpoint | None
    resumed: bool
    messages: tuple[str, ...] = ()
    # First and last global samples of the windows left out from here on.
    windows: tuple[tuple[int, int], ...] = ()
    # False where the optimizer is another one than the checkpoint's, so that its moments start at zero.
    keeps_moments: bool = True

    @property
    def step(self) -> int:
        return self.checkpoint.manifest.step if self.checkpoint else 0

    def updates(self, prefix: str) -> int:
        """Return the optimizer updates made so far by the learner of this prefix, which Adam counts."""
        if self.checkpoint is None or not self.keeps_moments:
            return 0
        return self.checkpoint.manifest.updates.get(prefix, self.step)

    @property
    def state(self) -> Mapping[str, Any]:
        """State of the batch builder."""
        return self.checkpoint.manifest.state if self.checkpoint else {}

    @property
    def guard(self) -> Mapping[str, Any]:
        """State of the guard."""
        return self.checkpoint.manifest.guard if self.checkpoint else {}

    @property
    def consumed(self) -> int:
        """Global samples drawn so far."""
        return self.checkpoint.manifest.samples if self.checkpoint else 0

    @property
    def samples(self) -> int:
        """Global sample to continue with: the first after the windows left out."""
        return self.windows[-1][1] + 1 if self.windows else self.consumed

    @property
    def order_version(self) -> int:
        """Version of the order of the data.

        A fork continues with the version of its origin, too: it keeps the position, which means other rows in
        another version.
        """
        return self.checkpoint.manifest.order_version if self.checkpoint else Order.version

    @property
    def tokens(self) -> int:
        return self.checkpoint.manifest.tokens if self.checkpoint else 0


def claim_and_resolve_start(resolved: ResolvedRun, data_digests: tuple[str, ...]) -> StartPoint:
    """Claim the run's checkpoints for this process, tidy them up, and resolve the start.

    The fence is advanced first, so that an earlier attempt that is still alive can't commit any more. Then
    half-written checkpoints of earlier attempts are removed, and damaged ones set aside.

    Raises:
        FencedError: a newer process has claimed the run.
    """
    checkpoints, token = resolved.checkpoints, resolved.token
    remove_leftovers(checkpoints, advance_fence(checkpoints, token, resolved.start))
    if (remote := resolved.remote) is not None:
        remote.fence_off()
        remote.tidy(resolved.run_dir, logger.info)
    start = resolve_start(resolved, data_digests)
    if start.resumed and start.checkpoint is not None:
        for directory in start.checkpoint.damaged:
            set_aside(directory)
    return replace(start, windows=windows_from(resolved.run_dir, start.consumed))


def resolve_start(resolved: ResolvedRun, data_digests: tuple[str, ...]) -> StartPoint:
    """Resume this run, fork another, or start from scratch; only rank 0 looks at the checkpoints.

    Raises:
        ConfigError: the configuration or the data contradicts the checkpoint, or the learning rate would jump;
            names the keys.
        CheckpointError: checkpoints exist and none verifies.
    """
    newest = newest_verified(resolved.checkpoints, remote=resolved.remote)
    if newest is not None:
        _refuse_contradictions(newest.manifest, resolved, CHANGEABLE_ON_RESUME, data_digests)
        _refuse_moved_changes(newest.manifest, resolved)
        # Training can't go backwards; a shorter run is another run.
        if newest.manifest.step > resolved.total_steps:
            raise ConfigError(
                [
                    f"the run is already at step {newest.manifest.step}, beyond the "
                    f"{resolved.total_steps} steps asked for; ask for more, or choose a new run.name"
                ]
            )
        damaged = (f"passed over a damaged checkpoint: {text}" for text in newest.passed_over)
        messages = (*damaged, *_changed_length(newest.manifest, resolved))
        return StartPoint(newest, resumed=True, messages=messages)
    # A run with checkpoints of its own resumes from these, even if it was forked.
    if resolved.job.run.from_ is not None:
        origin = parse_fork(resolved.job.run.from_)[0]
        fork_point = find_fork(resolved.runs, resolved.job.run.from_, resolved.remote_of(origin))
        _refuse_contradictions(fork_point.manifest, resolved, CHANGEABLE_ON_FORK, data_digests)
        _refuse_moved_changes(fork_point.manifest, resolved)
        return fork(fork_point, resolved)
    return StartPoint(None, resumed=False)


def _changed_length(manifest: CheckpointManifest, resolved: ResolvedRun) -> tuple[str, ...]:
    """Return a message for a run with another number of steps than planned when the checkpoint was made.

    Raises:
        ConfigError: the learning rate has begun to decay, by the old plan or by the new one, so that it would
            jump; names the checkpoint to continue from.
    """
    job, now = resolved.job, resolved.total_steps
    before = _planned_steps(manifest, job)
    start, new_start = (decay_start(job.schedule, total) for total in (before, now))
    if now in (before, manifest.step) or start is None or new_start is None:
        return ()
    earliest = min(start, new_start)
    key = "train.tokens" if job.train.steps is None else "train.steps"
    setting = f"{key}={job.train.tokens if job.train.steps is None else now}"
    if manifest.step <= earliest:
        return (
            f"{setting}: the learning rate decays from step {new_start} to {now}, and not from {start} to "
            f"{before} as planned before",
        )
    rates = [
        learning_rate_factor(job.schedule, manifest.step + 1, total) for total in (before, now)
    ]
    kept = _kept_before_decay(resolved, earliest)
    advice = (
        "no checkpoint from before the decay is left, so choose another run.name"
        if kept is None
        else f"continue from before the decay, as another run: run.name=… run.from={job.run.name}@{kept}"
    )
    raise ConfigError(
        [
            f"{setting}: {before} steps were planned; the learning rate decays from step {earliest} on, and "
            f"would jump from {rates[0]:.0%} of its peak to {rates[1]:.0%} after step {manifest.step}; {advice}"
        ]
    )


def _planned_steps(manifest: CheckpointManifest, job: TrainJob) -> int:
    """Return the steps of the run that were planned when the manifest was written."""
    planned = {key: manifest.config[f"train.{key}"] for key in ("steps", "tokens")}
    return total_steps(replace(job, train=replace(job.train, **planned)))


def _refuse_moved_changes(manifest: CheckpointManifest, resolved: ResolvedRun) -> None:
    """Refuse another length of a run that moves a change of weights into or out of its past.

    The order of the samples so far would be another one: some would come again, others never.
    """
    data = resolved.job.data
    before = _planned_steps(manifest, resolved.job)
    problems = []
    for point in data.mixture_changes:
        then, now = change_step(point, before), change_step(point, resolved.total_steps)
        if then != now and min(then, now) * resolved.job.train.global_batch < manifest.samples:
            problems.append(
                f"data.mixture_changes[{point}]: weights would change after step {now}, and not {then} as "
                f"planned for {before} steps, and the run is at step {manifest.step}; keep its length, or "
                "choose another run.name"
            )
    if problems:
        raise ConfigError(problems)


def _kept_before_decay(resolved: ResolvedRun, decay: int) -> int | None:
    """Return the step of the newest checkpoint that is left from before the decay."""
    # The object store may keep checkpoints that this machine no longer has.
    remote = resolved.remote
    local = [step for step, _ in committed_steps(resolved.checkpoints)]
    return newest_until(local if remote is None else remote.steps(), decay)


def extension_overrides(resolved: ResolvedRun) -> str | None:
    """Return the overrides that extend a finished run by more steps; None if it must start from scratch."""
    start = decay_start(resolved.job.schedule, resolved.total_steps)
    if start is None:
        return "train.steps=…"
    kept = _kept_before_decay(resolved, start)
    if kept is None:
        return None
    return f"run.name=… run.from={resolved.job.run.name}@{kept} train.steps=…"


def fork(checkpoint: VerifiedCheckpoint, resolved: ResolvedRun) -> StartPoint:
    """Start from another run's checkpoint; its moments are kept if the optimizer is the same."""
    before, now = checkpoint.manifest.config.get("optim.name"), resolved.job.optim.name
    if before == now:
        return StartPoint(checkpoint, resumed=False)
    text = (
        f"optim.name={now}: {resolved.job.run.from_} was trained with {before}, whose moments {now} can't use; "
        "they start at zero"
    )
    return StartPoint(checkpoint, resumed=False, messages=(text,), keeps_moments=False)


def _refuse_contradictions(
    manifest: CheckpointManifest,
    resolved: ResolvedRun,
    changeable: tuple[str, ...],
    data_digests: tuple[str, ...],
) -> None:
    problems = contradictions(manifest.config, resolved.config, changeable)
    if resolved.parent_digest != manifest.parent_digest and "parent" in resolved.config:
        problems.append(_changed_parent(manifest, resolved))
    for key, digest in manifest.model_digests.items():
        now = resolved.model_digests.get(key)
        if now is not None and now != digest:
            problems.append(
                f"{key}={resolved.config.get(key)} now resolves to different weights ({now[:12]}; the run "
                f"started with {digest[:12]}); name the version it started with, or choose another run.name"
            )
    # Other data is only worth mentioning if the configuration doesn't explain it already.
    if not problems and manifest.data_digests != data_digests:
        problems = [
            "the prepared data differs from the data that the checkpoint was trained on (manifest digests "
            f"{_short(manifest.data_digests)} then, {_short(data_digests)} now)"
        ]
    if problems:
        raise ConfigError(problems)


def _changed_parent(manifest: CheckpointManifest, resolved: ResolvedRun) -> str:
    setting = f"parent={resolved.config['parent']}"
    if resolved.parent != manifest.parent:
        return (
            f"{setting} now resolves to {resolved.parent}; the run started from {manifest.parent}: name that "
            "one to continue the run, or choose another run.name"
        )
    now, before = resolved.parent_digest or "none", manifest.parent_digest or "none"
    return (
        f"{setting}: {resolved.parent} now has different weights ({now[:12]}; the run started with "
        f"{before[:12]}): restore them to continue the run, or choose another run.name"
    )


def _short(digests: tuple[str, ...]) -> str:
    return ", ".join(digest[:12] for digest in digests)
