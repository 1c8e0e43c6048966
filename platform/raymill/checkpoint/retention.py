"""Which checkpoints stay. Pure in its decision, so that a test can show what is never deleted."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raymill.reading import entries, is_folder, read_json

REGISTERED_NAME = "registered.json"
_STEP_DIRECTORY = re.compile(r"step-(\d{8,})")


def step_directory_name(step: int) -> str:
    """`step-00001234`: sorts as text in the order of steps."""
    return f"step-{step:08d}"


def committed_steps(checkpoints: Path) -> list[tuple[int, Path]]:
    """(step, directory) of every step directory that was renamed into place, oldest first."""
    found = []
    for path in entries(checkpoints):
        match = _STEP_DIRECTORY.fullmatch(path.name)
        if match and is_folder(path):
            found.append((int(match[1]), path))
    return sorted(found)


@dataclass(frozen=True)
class Keep:
    """Checkpoints that stay: the last so many, multiples of `every` (0: none), and of those not after the
    step `before`, the newest."""

    last: int
    every: int
    before: int | None = None


def newest_until(steps: Iterable[int], last: int) -> int | None:
    """The newest of the steps that aren't after `last`; None where there is none."""
    return max((step for step in steps if step <= last), default=None)


def steps_to_delete(steps: Sequence[int], keep: Keep, protected: Collection[int]) -> list[int]:
    """Steps that may go: neither to keep nor protected."""
    stays = {*sorted(steps)[-max(1, keep.last) :]}
    kept = None if keep.before is None else newest_until(steps, keep.before)
    return [
        step
        for step in sorted(steps)
        if step not in stays
        and step != kept
        and step not in protected
        and not (keep.every > 0 and step % keep.every == 0)
    ]


def apply_retention(checkpoints: Path, keep: Keep, protected: Collection[Path]) -> list[Path]:
    """Delete what may go, and what earlier attempts left half-written; returns what was deleted.

    A directory is renamed before it is emptied, so that a crash in between can't leave something
    that looks committed.
    """
    directories = dict(committed_steps(checkpoints))
    names = {path.name for path in protected}
    doomed = steps_to_delete(
        list(directories),
        keep,
        [step for step, path in directories.items() if path.name in names],
    )
    deleted = []
    for step in doomed:
        remove(directories[step])
        deleted.append(directories[step])
    return deleted


def remove(directory: Path) -> None:
    """Delete a checkpoint; what is half deleted has another name."""
    grave = directory.with_name(f"{directory.name}.{uuid.uuid4().hex[:8]}.deleted")
    directory.replace(grave)
    shutil.rmtree(grave, ignore_errors=True)


def remove_leftovers(checkpoints: Path, writing: Path) -> None:
    """Delete directories that a killed attempt left half-written, in `writing`, or half-deleted."""
    for path in entries(writing):
        # Renamed first: an attempt that still lives somewhere mustn't commit what is half deleted.
        path.replace(checkpoints / f"{path.name}.deleted")
    for path in entries(checkpoints):
        if path.name.endswith(".deleted"):
            shutil.rmtree(path, ignore_errors=True)


def set_aside(directory: Path) -> Path:
    """Take a damaged checkpoint's place away from it, for the run to commit that step again; it stays for
    inspection. Returns its new path."""
    aside = directory.with_name(f"{directory.name}.damaged-{uuid.uuid4().hex[:8]}")
    directory.replace(aside)
    return aside


def registered_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints that registered versions point to; kept beside the run so that no server is asked."""
    records = read_json(run_dir / REGISTERED_NAME, missing=[])
    return [run_dir / record["checkpoint"] for record in records]
