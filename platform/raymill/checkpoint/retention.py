"""Retention: select the checkpoints that stay, by a pure function, and delete the others."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raymill.reading import entries, is_folder, read_json

REGISTERED_NAME = "registered.json"
# Start of the names of folders with what the ranks of a node have read from an object store.
CACHE = "cache-"
_STEP_DIRECTORY = re.compile(r"step-(\d{8,})")


def step_directory_name(step: int) -> str:
    """Return `step-00001234`, a name that sorts in the order of steps."""
    return f"step-{step:08d}"


def committed_steps(checkpoints: Path) -> list[tuple[int, Path]]:
    """List (step, directory) of every committed checkpoint, oldest first."""
    steps = []
    for path in entries(checkpoints):
        match = _STEP_DIRECTORY.fullmatch(path.name)
        if match and is_folder(path):
            steps.append((int(match[1]), path))
    return sorted(steps)


@dataclass(frozen=True)
class RetentionPolicy:
    """Checkpoints that stay: the `last` newest, and multiples of `every` (0: none).

    Of those up to the step `before`, the newest stays too.
    """

    last: int
    every: int
    before: int | None = None


def newest_until(steps: Iterable[int], last: int) -> int | None:
    """Return the newest of the steps up to `last`; None where there is none."""
    return max((step for step in steps if step <= last), default=None)


def steps_to_delete(
    steps: Sequence[int], policy: RetentionPolicy, protected: Collection[int]
) -> list[int]:
    """List the steps that neither the policy keeps nor `protected` names."""
    # At least one checkpoint always stays, whatever the configuration.
    stays = {*sorted(steps)[-max(1, policy.last) :]}
    newest_before = None if policy.before is None else newest_until(steps, policy.before)
    return [
        step
        for step in sorted(steps)
        if step not in stays
        and step != newest_before
        and step not in protected
        and not (policy.every > 0 and step % policy.every == 0)
    ]


def apply_retention(
    checkpoints: Path, policy: RetentionPolicy, protected: Collection[Path]
) -> list[Path]:
    """Delete checkpoints that the policy doesn't keep, and return them.

    A directory is renamed before it is emptied, so that a crash in between can't leave something
    that looks committed.
    """
    directories = dict(committed_steps(checkpoints))
    # Paths may be spelled differently, but names within the folder are unique.
    names = {path.name for path in protected}
    doomed = steps_to_delete(
        list(directories),
        policy,
        [step for step, path in directories.items() if path.name in names],
    )
    deleted = []
    for step in doomed:
        remove(directories[step])
        deleted.append(directories[step])
    return deleted


def remove(directory: Path) -> None:
    """Delete a checkpoint; under another name first, so that a half-deleted one isn't taken for
    whole."""
    renamed = directory.with_name(f"{directory.name}.{uuid.uuid4().hex[:8]}.deleted")
    directory.replace(renamed)
    shutil.rmtree(renamed, ignore_errors=True)


def remove_leftovers(checkpoints: Path, writing: Path) -> None:
    """Delete directories that a killed attempt left half-written, in `writing`, or half-deleted."""
    for path in entries(writing):
        # Renamed first: an attempt that is still alive somewhere must not commit half-deleted files.
        path.replace(checkpoints / f"{path.name}.deleted")
    for path in entries(checkpoints):
        if path.name.endswith(".deleted") or path.name.startswith(CACHE):
            shutil.rmtree(path, ignore_errors=True)


def set_aside(directory: Path) -> Path:
    """Rename a damaged checkpoint, so that the run can commit that step again; return its new path.

    The files stay for inspection.
    """
    aside = directory.with_name(f"{directory.name}.damaged-{uuid.uuid4().hex[:8]}")
    directory.replace(aside)
    return aside


def registered_checkpoints(run_dir: Path) -> list[Path]:
    """List the checkpoints that registered model versions point to.

    They are recorded in the run directory, so that no server needs to be asked.
    """
    records = read_json(run_dir / REGISTERED_NAME, missing=[])
    return [run_dir / record["checkpoint"] for record in records]
