"""What became of a run, from what it left: attempts and failures, which samples were learned from, what was
lost, and whether every byte of its checkpoints is still what was committed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from raymill.checkpoint.manifest import CheckpointManifest, verify
from raymill.checkpoint.remote import RemoteRun
from raymill.checkpoint.retention import committed_steps
from raymill.engine.guard import noted_windows
from raymill.errors import CheckpointError, ConfigError
from raymill.reading import entries, is_file, is_folder
from raymill.schema.jobs import AuditJob
from raymill.track.follow import Follower, last_of_each_step
from raymill.track.state_log import HISTORY_NAME, read_history


@dataclass(frozen=True)
class Attempt:
    """A start of the workers: from which step, to which, and what ended it."""

    number: int
    workers: int
    first: int  # the first step it made
    last: int
    seconds: float
    ended: str


@dataclass(frozen=True)
class Audit:
    """Everything that is told of a run. `problems` is empty where all is as it should be."""

    attempts: Sequence[Attempt]
    unstarted: str  # what became of starts before the first attempt; empty where all is well
    step: int
    samples: int  # drawn by the steps that count
    left_out: int  # by the guard: of the steps that count where it skipped, beside them where it went back
    replayed: int  # drawn again after a failure
    lost_steps: int  # made, and not among those that count
    useful_s: float  # of the steps that count
    running_s: float  # of all drivers, from their start of the workers to their end
    verified: Sequence[tuple[int, int]]  # (step, bytes)
    problems: Sequence[str]

    @property
    def effective(self) -> float:
        """Share of the running time that went into steps that count."""
        return self.useful_s / self.running_s if self.running_s else 0.0


def run(job: AuditJob) -> int:
    """Print a run's audit; returns the exit code, 1 where there is a problem.

    Raises:
        ConfigError: there is no such run.
    """
    if job.storage.uri is not None:
        return _run_remote(RemoteRun(f"{job.storage.uri}/runs/{job.run.name}"), str(job.run.name))
    runs = job.storage.folder / "runs"
    run_dir = runs / str(job.run.name)
    if not is_file(run_dir / HISTORY_NAME):
        there = [folder.name for folder in entries(runs) if is_file(folder / HISTORY_NAME)]
        raise ConfigError(
            [
                f"run.name={job.run.name}: {runs} has no such run; there is: {', '.join(there) or 'none'}"
            ]
        )
    return _print(audit(run_dir), f"run {job.run.name} in {run_dir}")


def _run_remote(remote: RemoteRun, name: str) -> int:
    """Of a run in an object store, wherever it was made."""
    with TemporaryDirectory() as folder:
        run_dir = Path(folder)
        remote.download_files(run_dir)
        return _print(audit(run_dir, remote.verified), f"run {name} in {remote.uri}")


def _print(found: Audit, title: str) -> int:
    print(title)
    for name, text in audit_lines(found):
        print(f"{name:<14}{text}")
    return 1 if found.problems else 0


def audit(
    run_dir: Path, verified: Callable[[], tuple[list[CheckpointManifest], list[str]]] | None = None
) -> Audit:
    """Read a run's journal, history and checkpoints, of which every byte is hashed, here or by `verified`."""
    events = Follower(run_dir / "metrics.jsonl").read()
    history = read_history(run_dir)
    steps = [event for event in events if event["kind"] == "step"]
    # Steps that an earlier attempt made beyond where the last one is will be made again.
    reached = steps[-1]["step"] if steps else 0
    counted = [event for event in last_of_each_step(events, "step") if event["step"] <= reached]
    manifests, damaged = verified() if verified else _verified(run_dir / "checkpoints")
    left_out = sorted({*_left_out(manifests), *noted_windows(run_dir)})
    batch = _batch(counted, manifests)
    kept = {id(event) for event in counted}
    # What lies in a window that the guard went back past is never drawn again.
    again = [
        event
        for event in steps
        if id(event) not in kept
        and not any(first < event["samples"] <= last + 1 for first, last in left_out)
    ]
    return Audit(
        attempts=_attempts(events, history),
        unstarted=_failed_starts(_before_the_first(events, history)),
        step=counted[-1]["step"] if counted else 0,
        samples=len(counted) * batch,
        left_out=sum(last - first + 1 for first, last in left_out),
        replayed=len(again) * batch,
        lost_steps=len(steps) - len(counted),
        useful_s=sum(event["perf/step_s"] for event in counted),
        running_s=sum(_sessions(events, history)),
        verified=[
            (manifest.step, sum(file.bytes for file in manifest.files.values()))
            for manifest in manifests
        ],
        problems=[*damaged, *_misdrawn(counted, batch, left_out)],
    )


def _batch(counted: Sequence[dict[str, Any]], manifests: Sequence[CheckpointManifest]) -> int:
    """Samples a step, by a checkpoint; without one, the least that two steps in a row differ by."""
    if manifests and "train.global_batch" in manifests[-1].config:
        return int(manifests[-1].config["train.global_batch"])
    samples: list[int] = [event["samples"] for event in counted]
    steps: list[int] = [after - before for before, after in pairwise(samples) if after > before]
    return min(steps, default=sum(samples[:1]))


def _verified(checkpoints: Path) -> tuple[list[CheckpointManifest], list[str]]:
    manifests, problems = [], []
    for _, directory in committed_steps(checkpoints):
        try:
            manifests.append(verify(directory))
        except CheckpointError as error:
            if is_folder(directory):  # it isn't where the run goes on meanwhile
                problems.append(str(error))
    return manifests, problems


def _left_out(manifests: Sequence[CheckpointManifest]) -> list[tuple[int, int]]:
    """First and last sample of each window that the guard left out, by the newest checkpoint."""
    if not manifests:
        return []
    return [(first, last) for first, last in manifests[-1].guard.get("skipped", [])]


def _misdrawn(
    counted: Sequence[dict[str, Any]], batch: int, left_out: Sequence[tuple[int, int]]
) -> Iterator[str]:
    """Steps whose samples aren't the ones that follow those of the step before: each is drawn once and in
    order, but for windows that were left out as a whole."""
    windows = {first: last + 1 for first, last in left_out}
    expected: int | None = None
    for event in counted:
        first = event["samples"] - batch
        while expected is not None and expected < first and expected in windows:
            expected = windows[expected]
        if expected is not None and first != expected:
            yield f"step {event['step']} drew samples from {first} on, {expected} were next"
        ids = np.arange(first, first + batch, dtype="<i8")
        if hashlib.sha256(ids.tobytes()).hexdigest() != event["sample_ids_sha256"]:
            yield f"step {event['step']} didn't draw the samples {first}-{first + batch - 1}"
        expected = first + batch


def _attempts(events: Sequence[dict[str, Any]], history: Sequence[dict[str, Any]]) -> list[Attempt]:
    """Attempts in order; what ended each is the first thing told of after its last event."""
    found = []
    starts = [event for event in events if event["kind"] == "attempt"]
    for index, start in enumerate(starts):
        own = [event for event in events if event["attempt"] == start["attempt"]]
        until = starts[index + 1]["time"] if index + 1 < len(starts) else float("inf")
        steps = [event["step"] for event in own if event["kind"] == "step"]
        found.append(
            Attempt(
                number=start["attempt"],
                workers=start["world_size"],
                first=min(steps, default=start["step"] + 1),
                last=max(steps, default=start["step"]),
                seconds=own[-1]["time"] - start["time"],
                ended=_ended(own, history, start["time"], until),
            )
        )
    return found


def _ended(
    own: Sequence[dict[str, Any]], history: Sequence[dict[str, Any]], since: float, until: float
) -> str:
    told = [line for line in history if since <= line["time"] < until and "what" in line]
    driver = max((line["token"] for line in history if line["time"] <= since), default=None)
    ours = [line for line in told if line["token"] == driver]
    # A failure's cause follows what the watchdog may have said of it; those after it, and another driver's,
    # are of starts that didn't come as far as an attempt.
    mine = next((line for line in ours if "cause" in line), None)
    starts = _failed_starts([line for line in told if line is not mine])
    then = f"; then {starts}" if starts else ""
    return _first_word(own, ours, until) + then


def _first_word(own: Sequence[dict[str, Any]], told: Sequence[dict[str, Any]], until: float) -> str:
    if told:
        return str(told[0]["what"])
    status = next((event for event in reversed(own) if event["kind"] == "status"), None)
    if status is None:
        last = until == float("inf")
        return f"{'under way, or ' if last else ''}its driver ended without a word"
    return f"{status['status']}: {status['error']}" if "error" in status else str(status["status"])


def _before_the_first(
    events: Sequence[dict[str, Any]], history: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    begin = min((event["time"] for event in events), default=float("inf"))
    return [line for line in history if line["time"] < begin]


def _failed_starts(lines: Sequence[dict[str, Any]]) -> str:
    failed = [line["what"] for line in lines if "cause" in line]
    return f"{len(failed)} start{'s' if failed[1:] else ''} failed: {failed[-1]}" if failed else ""


def _sessions(
    events: Sequence[dict[str, Any]], history: Sequence[dict[str, Any]]
) -> Iterator[float]:
    """Seconds of each driver that held the run: to its last word, or to the last of its workers'."""
    tokens = sorted({line["token"] for line in history})
    begins = {
        token: min(line["time"] for line in history if line["token"] == token) for token in tokens
    }
    for index, token in enumerate(tokens):
        begin = begins[token]
        end = begins[tokens[index + 1]] if index + 1 < len(tokens) else float("inf")
        times = [line["time"] for line in history if line["token"] == token]
        times += [event["time"] for event in events if begin <= event["time"] < end]
        yield max(times) - begin


def audit_lines(found: Audit) -> list[tuple[str, str]]:
    """An audit in words."""
    lines = [("step", f"{found.step:,}")]
    if found.unstarted:
        lines.append(("before", found.unstarted))
    for attempt in found.attempts:
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
    total = found.samples + found.replayed
    again = f"{found.replayed / total:.1%}" if total else "0%"
    lines += [
        (
            "samples",
            f"{found.samples:,} drawn by the steps that count; {found.replayed:,} drawn again after failures "
            f"({again}); {found.left_out:,} left out by the guard",
        ),
        ("steps lost", f"{found.lost_steps:,}"),
        (
            "time",
            f"{found.effective:.1%} effective: {found.useful_s:,.0f} s of steps that count in "
            f"{found.running_s:,.0f} s of running",
        ),
        (
            "checkpoints",
            ", ".join(f"step {step:,} ({size / 2**20:,.1f} MiB)" for step, size in found.verified)
            + (": every byte verified" if found.verified else "none"),
        ),
    ]
    return [*lines, *(("PROBLEM", text) for text in found.problems)]
