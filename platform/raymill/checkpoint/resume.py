"""Resume a run: find the newest checkpoint that verifies, and check that this run may continue
it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymill.checkpoint.fragments import FragmentReader
from raymill.checkpoint.manifest import CheckpointManifest, verify
from raymill.checkpoint.retention import committed_steps, step_directory_name
from raymill.checkpoint.verified_files import LocalFiles
from raymill.durable import JsonObject
from raymill.errors import CheckpointError, ConfigError
from raymill.schema.identity import CAME_LATER, FORMERLY, is_changeable
from raymill.schema.renamed import current_names
from raymill.schema.tree import without_secrets

_FORK = re.compile(r"(?P<run>[A-Za-z0-9_][A-Za-z0-9._-]*)@(?P<step>\d+)")


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """Verified checkpoint, and the newer ones that were passed over because they are damaged."""

    directory: Path
    manifest: CheckpointManifest
    passed_over: tuple[str, ...] = ()
    damaged: tuple[Path, ...] = ()

    def reader(self) -> FragmentReader:
        """Open the checkpoint's parameters and moments."""
        return FragmentReader(LocalFiles(self.directory), self.manifest)


def newest_verified(
    checkpoints: Path, on_damage: Callable[[str], None] | None = None
) -> VerifiedCheckpoint | None:
    """Return the newest checkpoint whose every byte verifies, or None when there is none at all.

    Damaged checkpoints are passed over, and reported through `on_damage` and in the result.

    Raises:
        CheckpointError: checkpoints exist but none verifies. A fresh start would silently discard
            the run, so the user must decide.
        StorageError: a checkpoint can't be read. It may be whole, so no older one is used instead.
    """
    passed_over: list[str] = []
    damaged: list[Path] = []
    steps = committed_steps(checkpoints)
    # The newest first, so that older ones need not be verified.
    for _, directory in reversed(steps):
        try:
            manifest = verify(directory)
        except CheckpointError as error:
            passed_over.append(str(error))
            damaged.append(directory)
            if on_damage is not None:
                on_damage(str(error))
            continue
        return VerifiedCheckpoint(directory, manifest, tuple(passed_over), tuple(damaged))
    if passed_over:
        details = "\n".join(f"  - {text}" for text in passed_over)
        raise CheckpointError(
            f"none of the {len(steps)} checkpoints under {checkpoints} verifies:\n{details}\n"
            "To start the run over, move that folder away; to keep it, restore the named files."
        )
    return None


def parse_fork(reference: str) -> tuple[str, int]:
    """Split `name@step` into run name and step.

    Raises:
        ConfigError: the reference has another form.
    """
    match = _FORK.fullmatch(reference)
    if match is None:
        raise ConfigError([f"run.from={reference!r}: expected <run name>@<step>, as in base@1000"])
    return match["run"], int(match["step"])


def find_fork(runs: Path, reference: str) -> VerifiedCheckpoint:
    """Return the checkpoint that `run.from=name@step` refers to.

    Raises:
        ConfigError: there is no such run or step; names the steps that exist.
        CheckpointError: the checkpoint doesn't verify.
    """
    run, step = parse_fork(reference)
    checkpoints = runs / run / "checkpoints"
    available = [number for number, _ in committed_steps(checkpoints)]
    if step not in available:
        known = ", ".join(map(str, available)) or "none"
        raise ConfigError(
            [f"run.from={reference}: {checkpoints} has no step {step} (available: {known})"]
        )
    directory = checkpoints / step_directory_name(step)
    return VerifiedCheckpoint(directory, verify(directory))


def contradictions(
    stored: Mapping[str, Any], requested: Mapping[str, Any], changeable: tuple[str, ...]
) -> list[str]:
    """List the requested settings that contradict the checkpoint's, one line per key."""
    problems = []
    # Old manifests may hold secrets, which aren't part of a run's identity.
    kept: JsonObject = without_secrets(current_names(stored))
    stored = {key: kept.get(other) for key, other in FORMERLY.items() if key in requested} | kept
    for key in sorted({*stored, *requested}):
        before = stored.get(key, CAME_LATER.get(key))
        if is_changeable(key, changeable) or before == requested.get(key, CAME_LATER.get(key)):
            continue
        problems.append(
            f"{key}={requested.get(key)!r}: the checkpoint was trained with {before!r}; "
            "this key can't change within a run (choose another run.name, or fork with run.from)"
        )
    return problems
