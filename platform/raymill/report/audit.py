"""Audit of a run from its files: attempts and failures, order of the samples, lost work, intact checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from raymill.checkpoint.manifest import CheckpointManifest, verify
from raymill.checkpoint.remote import RemoteRun
from raymill.checkpoint.retention import committed_steps
from raymill.engine.event_log import Event
from raymill.engine.guard import noted_windows
from raymill.errors import CheckpointError, ConfigError
from raymill.reading import entries, is_file, is_folder
from raymill.schema.jobs import AuditJob
from raymill.track.follow import Follower, last_of_each_step
from raymill.track.state_log import HISTORY_NAME, StateLine, read_history


@dataclass(frozen=True)
class Attempt:
    """One attempt at training: a start of the workers, its steps and its end."""

    number: int
    workers: int
    first: int  # first and last step that it made
    last: int
    seconds: float
    ended: str


@dataclass(frozen=True)
class Audit:
    """Results of an audit.

    Effective steps are those of the final history: every step once, as last written. `unstarted` describes
    failed starts before the first attempt. `samples`: drawn by effective steps; `left_out`: excluded by the
    guard; `replayed`: drawn again after a failure. `lost_steps`: made, but replaced by a later attempt.
    `useful_s`: seconds of effective steps; `running_s`: seconds of all drivers, from start to end.
    `verified`: (step, bytes) of every intact checkpoint. `problems` is empty for a healthy run.
    """

    attempts: Sequence[Attempt]
    unstarted: str
    step: int
    samples: int
    left_out: int
    replayed: int
    lost_steps: int
    useful_s: float
    running_s: float
    verified: Sequence[tuple[int, int]]
    problems: Sequence[str]

    @property
    def effective(self) -> float:
        """Share of the running time spent in effective steps."""
        return self.useful_s / self.running_s if self.running_s else 0.0


def run(job: AuditJob) -> int:
    """Print a run's audit. Return the exit code: 1 if there is a problem.

    Raises:
        ConfigError: there is no such run.
    """
    if job.storage.uri is not None:
        return _run_remote(RemoteRun(f"{job.storage.uri}/runs/{job.run.name}"), str(job.run.name))
    runs = job.storage.folder / "runs"
    # A run without a history was never started by a driver.
    run_dir = runs / str(job.run.name)
    if not is_file(run_dir / HISTORY_NAME):
        known = [folder.name for folder in entries(runs) if is_file(folder / HISTORY_NAME)]
        raise ConfigError(
            [
                f"run.name={job.run.name}: {runs} has no such run; there is: {', '.join(known) or 'none'}"
            ]
        )
    return _print(audit(run_dir), f"run {job.run.name} in {run_dir}")


def _run_remote(remote: RemoteRun, name: str) -> int:
    """Audit a run in an object store, whose checkpoints are verified there."""
    with TemporaryDirectory() as folder:
        run_dir = Path(folder)
        remote.download_files(run_dir)
        return _print(audit(run_dir, remote.verified), f"run {name} in {remote.uri}")


def _print(result: Audit, title: str) -> int:
    print(title)
    for topic, text in audit_lines(result):
        print(f"{topic:<14}{text}")
    return 1 if result.problems else 0


def audit(
    run_dir: Path, verified: Callable[[], tuple[list[CheckpointManifest], list[str]]] | None = None
) -> Audit:
    """Audit a run by its journal, its history and its checkpoints.

    `verified` returns the intact checkpoints' manifests and the problems of the others; without it, every
    byte of the checkpoints is hashed here.
    """
    events = Follower(run_dir / "metrics.jsonl").read()
    history = read_history(run_dir)
    steps = [event for event in events if event["kind"] == "step"]
    # An earlier attempt may have gone further than the last one; its later steps will be repeated.
    reached = steps[-1]["step"] if steps else 0
    effective = [event for event in last_of_each_step(events, "step") if event["step"] <= reached]
    manifests, damaged = verified() if verified else _verified(run_dir / "checkpoints")
    left_out = sorted({*_left_out(manifests), *noted_windows(run_dir)})
    batch = _batch(effective, manifests)
    # Events are compared by identity, because a replayed step has the same number as the step it replaces.
    kept = {id(event) for event in effective}
    # After a rollback by the guard, the samples of its window are skipped, so they are never drawn again.
    replayed = [
        event
        for event in steps
        if id(event) not in kept
        and not any(first < event["samples"] <= last + 1 for first, last in left_out)
    ]
    return Audit(
        attempts=_attempts(events, history),
        unstarted=_failed_starts(_before_the_first(events, history)),
        step=effective[-1]["step"] if effective else 0,
        samples=len(effective) * batch,
        left_out=sum(last - first + 1 for first, last in left_out),
        replayed=len(replayed) * batch,
        lost_steps=len(steps) - len(effective),
        useful_s=sum(event["perf/step_s"] for event in effective),
        running_s=sum(_sessions(events, history)),
        verified=[
            (manifest.step, sum(file.bytes for file in manifest.files.values()))
            for manifest in manifests
        ],
        problems=[*damaged, *_sample_problems(effective, batch, left_out)],
    )


def _batch(effective: Sequence[Event], manifests: Sequence[CheckpointManifest]) -> int:
    """Return the samples per step, by a checkpoint or else by the smallest increase between two steps."""
    if manifests and "train.global_batch" in manifests[-1].config:
        return int(manifests[-1].config["train.global_batch"])
    samples: list[int] = [event["samples"] for event in effective]
    steps: list[int] = [after - before for before, after in pairwise(samples) if after > before]
    return min(steps, default=sum(samples[:1]))


def _verified(checkpoints: Path) -> tuple[list[CheckpointManifest], list[str]]:
    manifests, problems = [], []
    for _, directory in committed_steps(checkpoints):
        try:
            manifests.append(verify(directory))
        except CheckpointError as error:
            # A run that is still training may have deleted this old checkpoint in the meantime.
            if is_folder(directory):
                problems.append(str(error))
    return manifests, problems


def _left_out(manifests: Sequence[CheckpointManifest]) -> list[tuple[int, int]]:
    """Return the (first, last) samples of the windows that the guard excluded, by the newest checkpoint."""
    if not manifests:
        return []
    return [(first, last) for first, last in manifests[-1].guard.get("skipped", [])]


def _sample_problems(
    effective: Sequence[Event], batch: int, left_out: Sequence[tuple[int, int]]
) -> Iterator[str]:
    """Yield a problem for every step whose samples don't follow those of the step before.

    Samples are drawn once and in order, except for windows that the guard excluded as a whole.
    """
    windows = {first: last + 1 for first, last in left_out}
    expected: int | None = None
    for event in effective:
        first = event["samples"] - batch
        while expected is not None and expected < first and expected in windows:
            expected = windows[expected]
        if expected is not None and first != expected:
            yield f"step {event['step']} drew samples from {first} on instead of {expected}"
        ids = np.arange(first, first + batch, dtype="<i8")
        if hashlib.sha256(ids.tobytes()).hexdigest() != event["sample_ids_sha256"]:
            yield f"step {event['step']} didn't draw the samples {first}-{first + batch - 1}"
        expected = first + batch


def _attempts(events: Sequence[Event], history: Sequence[StateLine]) -> list[Attempt]:
    """Return the attempts in order; the first state recorded after an attempt's last event explains its end."""
    attempts = []
    starts = [event for event in events if event["kind"] == "attempt"]
    for index, start in enumerate(starts):
        made = [event for event in events if event["attempt"] == start["attempt"]]
        until = starts[index + 1]["time"] if index + 1 < len(starts) else float("inf")
        steps = [event["step"] for event in made if event["kind"] == "step"]
        attempts.append(
            Attempt(
                number=start["attempt"],
                workers=start["world_size"],
                first=min(steps, default=start["step"] + 1),
                last=max(steps, default=start["step"]),
                seconds=made[-1]["time"] - start["time"],
                ended=_ended(made, history, start["time"], until),
            )
        )
    return attempts


def _ended(made: Sequence[Event], history: Sequence[StateLine], since: float, until: float) -> str:
    """Describe the end of an attempt whose events are `made`, and the failed starts after it."""
    states = [line for line in history if since <= line["time"] < until and "what" in line]
    driver = max((line["token"] for line in history if line["time"] <= since), default=None)
    by_driver = [line for line in states if line["token"] == driver]
    # The first cause belongs to this attempt, possibly after a remark of the watchdog. Later causes, and
    # those of another driver, belong to starts that failed before they became an attempt.
    cause = next((line for line in by_driver if "cause" in line), None)
    starts = _failed_starts([line for line in states if line is not cause])
    then = f"; then {starts}" if starts else ""
    return _explanation(made, by_driver, until) + then


def _explanation(made: Sequence[Event], states: Sequence[StateLine], until: float) -> str:
    if states:
        return str(states[0]["what"])
    status = next((event for event in reversed(made) if event["kind"] == "status"), None)
    if status is None:
        last = until == float("inf")
        return f"{'still running, or ' if last else ''}its driver ended without a record"
    return f"{status['status']}: {status['error']}" if "error" in status else str(status["status"])


def _before_the_first(events: Sequence[Event], history: Sequence[StateLine]) -> list[StateLine]:
    first = min((event["time"] for event in events), default=float("inf"))
    return [line for line in history if line["time"] < first]


def _failed_starts(lines: Sequence[StateLine]) -> str:
    failed = [line["what"] for line in lines if "cause" in line]
    return f"{len(failed)} start{'s' if failed[1:] else ''} failed: {failed[-1]}" if failed else ""


def _sessions(events: Sequence[Event], history: Sequence[StateLine]) -> Iterator[float]:
    """Yield the seconds of each driver that held the run, up to its last record or its workers' last event."""
    tokens = sorted({line["token"] for line in history})
    starts = {
        token: min(line["time"] for line in history if line["token"] == token) for token in tokens
    }
    for index, token in enumerate(tokens):
        start = starts[token]
        end = starts[tokens[index + 1]] if index + 1 < len(tokens) else float("inf")
        times = [line["time"] for line in history if line["token"] == token]
        times += [event["time"] for event in events if start <= event["time"] < end]
        yield max(times) - start


def audit_lines(result: Audit) -> list[tuple[str, str]]:
    """Describe an audit in lines of (topic, text)."""
    lines = [("step", f"{result.step:,}")]
    if result.unstarted:
        lines.append(("before", result.unstarted))
    for attempt in result.attempts:
        made = (
            f"steps {attempt.first:,} to {attempt.last:,}"
            if attempt.last >= attempt.first
            else "no step"
        )
        workers = f"{attempt.workers} worker{'s' if attempt.workers > 1 else ''}"
        lines.append(
            (
                f"attempt {attempt.number}",
                f"{made}, {workers}, {attempt.seconds:,.0f} s; {attempt.ended}",
            )
        )
    total = result.samples + result.replayed
    again = f"{result.replayed / total:.1%}" if total else "0%"
    lines += [
        (
            "samples",
            f"{result.samples:,} drawn by effective steps; {result.replayed:,} drawn again after failures "
            f"({again}); {result.left_out:,} excluded by the guard",
        ),
        ("steps lost", f"{result.lost_steps:,}"),
        (
            "time",
            f"{result.effective:.1%} effective: {result.useful_s:,.0f} s of effective steps in "
            f"{result.running_s:,.0f} s of running",
        ),
        (
            "checkpoints",
            ", ".join(f"step {step:,} ({size / 2**20:,.1f} MiB)" for step, size in result.verified)
            + (": every byte verified" if result.verified else "none"),
        ),
    ]
    return [*lines, *(("PROBLEM", text) for text in result.problems)]
