"""Where a run begins: anew, at its own newest checkpoint, or at another run's; without torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raymill.checkpoint.fence import advance_fence
from raymill.checkpoint.manifest import CheckpointManifest
from raymill.checkpoint.resume import (
    VerifiedCheckpoint,
    contradictions,
    find_fork,
    newest_verified,
)
from raymill.checkpoint.retention import committed_steps, newest_until, remove_leftovers, set_aside
from raymill.data.store.manifest import PreparedData, load_prepared
from raymill.data.store.order import Order, SourceShape
from raymill.engine.guard import windows_from
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.schedule import decay_start, learning_rate_factor
from raymill.errors import ConfigError
from raymill.plan.batch import total_steps
from raymill.schema.identity import CHANGEABLE_ON_FORK, CHANGEABLE_ON_RESUME

logger = logging.getLogger(__name__)


def open_data(resolved: ResolvedRun) -> tuple[list[PreparedData], Order]:
    """Verify the prepared folders' manifests and derive the order of all samples."""
    job = resolved.job
    prepared = [load_prepared(folder) for folder in resolved.folders]
    sources = [
        SourceShape(
            name=str(index),
            weight=weight,
            row_group_rows=data.manifest.row_group_rows,
            shard_rows=tuple(shard.rows for shard in data.manifest.splits["train"].shards),
        )
        for index, (data, weight) in enumerate(zip(prepared, resolved.weights, strict=True))
    ]
    return prepared, Order(sources, job.run.seed, job.data.window_row_groups)


@dataclass(frozen=True)
class StartPoint:
    """Where the run begins: a checkpoint, and whether it is this run's own."""

    found: VerifiedCheckpoint | None
    resumed: bool
    messages: tuple[str, ...] = ()
    windows: tuple[tuple[int, int], ...] = ()  # first and last sample left out from here on
    keeps_moments: bool = True  # the checkpoint's; or they start at zero, as another optimizer's

    @property
    def step(self) -> int:
        return self.found.manifest.step if self.found else 0

    def updates(self, prefix: str) -> int:
        """Optimizer updates made so far by the learner of this prefix: what Adam counts."""
        if self.found is None or not self.keeps_moments:
            return 0
        return self.found.manifest.updates.get(prefix, self.step)

    @property
    def state(self) -> Mapping[str, Any]:
        """What the experience keeps."""
        return self.found.manifest.state if self.found else {}

    @property
    def guard(self) -> Mapping[str, Any]:
        """What the guard keeps."""
        return self.found.manifest.guard if self.found else {}

    @property
    def consumed(self) -> int:
        """Global samples drawn until here."""
        return self.found.manifest.samples if self.found else 0

    @property
    def samples(self) -> int:
        """Where the next ones come from: behind what is left out."""
        return self.windows[-1][1] + 1 if self.windows else self.consumed

    @property
    def tokens(self) -> int:
        return self.found.manifest.tokens if self.found else 0


def begin(resolved: ResolvedRun, data_digests: tuple[str, ...]) -> StartPoint:
    """`decide_start` by the one that writes the run: what an attempt before left half-written or damaged is out
    of the way then.

    Raises:
        FencedError: the run is another's by now.
    """
    checkpoints, token = resolved.checkpoints, resolved.token
    remove_leftovers(checkpoints, advance_fence(checkpoints, token, resolved.start))
    if (remote := resolved.remote) is not None:
        remote.fence_off()
        remote.download_newest(resolved.run_dir, logger.info)
    start = decide_start(resolved, data_digests)
    if start.resumed and start.found is not None:
        for directory in start.found.damaged:
            set_aside(directory)
    return replace(start, windows=windows_from(resolved.run_dir, start.consumed))


def decide_start(resolved: ResolvedRun, data_digests: tuple[str, ...]) -> StartPoint:
    """Resume this run, fork another, or start anew. Rank 0 decides; nobody else looks.

    Raises:
        ConfigError: the configuration or the data contradicts the checkpoint, or the learning rate would jump;
            names the keys.
        CheckpointError: checkpoints exist and none verifies.
    """
    found = newest_verified(resolved.checkpoints)
    if found is not None:
        _refuse_contradictions(found.manifest, resolved, CHANGEABLE_ON_RESUME, data_digests)
        if found.manifest.step > resolved.total_steps:
            raise ConfigError(
                [
                    f"the run is already at step {found.manifest.step}, beyond the "
                    f"{resolved.total_steps} steps asked for; ask for more, or choose a new run.name"
                ]
            )
        damaged = (f"passed over a damaged checkpoint: {text}" for text in found.passed_over)
        messages = (*damaged, *_another_length(found.manifest, resolved))
        return StartPoint(found, resumed=True, messages=messages)
    if resolved.job.run.from_ is not None:
        found = find_fork(resolved.runs, resolved.job.run.from_)
        _refuse_contradictions(found.manifest, resolved, CHANGEABLE_ON_FORK, data_digests)
        return fork(found, resolved)
    return StartPoint(None, resumed=False)


def _another_length(manifest: CheckpointManifest, resolved: ResolvedRun) -> tuple[str, ...]:
    """Tell of a run that it will have another number of steps than was planned when this checkpoint was
    made.

    Raises:
        ConfigError: the learning rate has begun to decay, by the plan of before or by the one of now, so that
            it would jump. Says from which checkpoint to go on.
    """
    job, now = resolved.job, resolved.total_steps
    planned = {key: manifest.config[f"train.{key}"] for key in ("steps", "tokens")}
    before = total_steps(replace(job, train=replace(job.train, **planned)))
    start, new_start = (decay_start(job.schedule, total) for total in (before, now))
    if now in (before, manifest.step) or start is None or new_start is None:
        return ()
    begun = min(start, new_start)
    key = "train.tokens" if job.train.steps is None else "train.steps"
    asked = f"{key}={job.train.tokens if job.train.steps is None else now}"
    if manifest.step <= begun:
        return (
            f"{asked}: the learning rate decays from step {new_start} to {now}, and not from {start} to "
            f"{before} as planned before",
        )
    rates = [
        learning_rate_factor(job.schedule, manifest.step + 1, total) for total in (before, now)
    ]
    kept = _kept_before_decay(resolved, begun)
    advice = (
        "no checkpoint from before the decay is left, so choose another run.name"
        if kept is None
        else f"go on from before the decay, as another run: run.name=… run.from={job.run.name}@{kept}"
    )
    raise ConfigError(
        [
            f"{asked}: {before} steps were planned; the learning rate decays from step {begun} on, and would "
            f"jump from {rates[0]:.0%} of its peak to {rates[1]:.0%} after step {manifest.step}; {advice}"
        ]
    )


def _kept_before_decay(resolved: ResolvedRun, start: int) -> int | None:
    """The step of the newest checkpoint that there is from before the decay."""
    remote = resolved.remote
    here = [step for step, _ in committed_steps(resolved.checkpoints)]
    steps = here if remote is None else remote.steps()
    return newest_until(steps, start)


def going_on(resolved: ResolvedRun) -> str | None:
    """Say what to add to a finished run's command for more steps; None where it would have to begin anew."""
    start = decay_start(resolved.job.schedule, resolved.total_steps)
    if start is None:
        return "train.steps=…"
    kept = _kept_before_decay(resolved, start)
    if kept is None:
        return None
    return f"run.name=… run.from={resolved.job.run.name}@{kept} train.steps=…"


def fork(found: VerifiedCheckpoint, resolved: ResolvedRun) -> StartPoint:
    """Start from another run's checkpoint; moments are kept where the optimizer is."""
    before, now = found.manifest.config.get("optim.name"), resolved.job.optim.name
    if before == now:
        return StartPoint(found, resumed=False)
    text = (
        f"optim.name={now}: {resolved.job.run.from_} was trained with {before}, whose moments don't serve "
        "it; they start at zero"
    )
    return StartPoint(found, resumed=False, messages=(text,), keeps_moments=False)


def _refuse_contradictions(
    manifest: CheckpointManifest,
    resolved: ResolvedRun,
    changeable: tuple[str, ...],
    data_digests: tuple[str, ...],
) -> None:
    problems = contradictions(manifest.config, resolved.config, changeable)
    if resolved.parent_digest != manifest.parent_digest and "parent" in resolved.config:
        problems.append(_other_parent(manifest, resolved))
    for key, digest in manifest.model_digests.items():
        now = resolved.model_digests.get(key)
        if now is not None and now != digest:
            problems.append(
                f"{key}={resolved.config.get(key)}: its weights are others now ({now[:12]}) than those the "
                f"run began with ({digest[:12]}); name the version it began with, or choose another run.name"
            )
    if not problems and manifest.data_digests != data_digests:
        problems = [
            "the prepared data isn't what the checkpoint was trained on (manifest digests "
            f"{_short(manifest.data_digests)} then, {_short(data_digests)} now)"
        ]
    if problems:
        raise ConfigError(problems)


def _other_parent(manifest: CheckpointManifest, resolved: ResolvedRun) -> str:
    asked = f"parent={resolved.config['parent']}"
    if resolved.parent != manifest.parent:
        return (
            f"{asked} is {resolved.parent} now, the run started from {manifest.parent}: give that one to go "
            "on with the run, or choose another run.name"
        )
    now, before = resolved.parent_digest or "none", manifest.parent_digest or "none"
    return (
        f"{asked}: {resolved.parent} has other weights now ({now[:12]}) than those the run began with "
        f"({before[:12]}): restore them to go on with the run, or choose another run.name"
    )


def _short(digests: tuple[str, ...]) -> str:
    return ", ".join(digest[:12] for digest in digests)
