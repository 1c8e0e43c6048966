"""What "resume" reads: the newest checkpoint that verifies, and whether this run may continue it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymill.checkpoint.fragments import FragmentReader, read_index
from raymill.checkpoint.manifest import INDEX_NAME, Manifest, verify
from raymill.checkpoint.retention import committed_steps, step_directory_name
from raymill.errors import CheckpointError, ConfigError
from raymill.schema.identity import FORMERLY, is_changeable
from raymill.schema.renamed import current_names
from raymill.schema.tree import without_secrets

_FORK = re.compile(r"(?P<run>[A-Za-z0-9_][A-Za-z0-9._-]*)@(?P<step>\d+)")


@dataclass(frozen=True)
class Found:
    """A verified checkpoint, and what was passed over on the way to it, with why."""

    directory: Path
    manifest: Manifest
    passed_over: tuple[str, ...] = ()
    damaged: tuple[Path, ...] = ()

    def reader(self) -> FragmentReader:
        """Opens the checkpoint's parameters and moments."""
        return FragmentReader(self.directory, read_index(self.directory / INDEX_NAME))


def newest_verified(
    checkpoints: Path, on_damage: Callable[[str], None] | None = None
) -> Found | None:
    """The newest checkpoint whose every byte verifies, or None when there is none at all.

    A damaged one is passed over, and said so by name through `on_damage` and in the result.

    Raises:
        CheckpointError: checkpoints exist but none verifies. Starting anew would silently throw the
            run away, so that is left to the user.
        StorageError: one can't be read. It is none the worse for it, so an older one isn't taken in its place.
    """
    passed_over: list[str] = []
    damaged: list[Path] = []
    steps = committed_steps(checkpoints)
    for _, directory in reversed(steps):
        try:
            manifest = verify(directory)
        except CheckpointError as error:
            passed_over.append(str(error))
            damaged.append(directory)
            if on_damage is not None:
                on_damage(str(error))
            continue
        return Found(directory, manifest, tuple(passed_over), tuple(damaged))
    if passed_over:
        details = "\n".join(f"  - {text}" for text in passed_over)
        raise CheckpointError(
            f"none of the {len(steps)} checkpoints under {checkpoints} verifies:\n{details}\n"
            "To start the run anew, move that folder away; to keep it, restore the files named."
        )
    return None


def parse_fork(reference: str) -> tuple[str, int]:
    """`name@step` → (run name, step).

    Raises:
        ConfigError: the reference has another form.
    """
    match = _FORK.fullmatch(reference)
    if match is None:
        raise ConfigError([f"run.from={reference!r}: expected <run name>@<step>, as in base@1000"])
    return match["run"], int(match["step"])


def find_fork(runs: Path, reference: str) -> Found:
    """The checkpoint that `run.from=name@step` means.

    Raises:
        ConfigError: there is no such run or step; names the steps that exist.
        CheckpointError: that checkpoint doesn't verify.
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
    return Found(directory, verify(directory))


def contradictions(
    stored: Mapping[str, Any], asked: Mapping[str, Any], changeable: tuple[str, ...]
) -> list[str]:
    """What the configuration asks that the checkpoint contradicts, one line a key."""
    problems = []
    # Manifests from before may hold secrets, which aren't part of what a run is.
    kept: dict[str, Any] = without_secrets(current_names(stored))
    stored = {key: kept.get(other) for key, other in FORMERLY.items() if key in asked} | kept
    for key in sorted({*stored, *asked}):
        if is_changeable(key, changeable) or stored.get(key) == asked.get(key):
            continue
        problems.append(
            f"{key}={asked.get(key)!r}: the checkpoint was trained with {stored.get(key)!r}; "
            "this key can't change within a run (choose another run.name, or fork with run.from)"
        )
    return problems
