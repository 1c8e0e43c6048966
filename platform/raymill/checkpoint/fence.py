"""Fence against earlier writers, enforced by the file system.

A checkpoint is written in a folder whose name carries the writer's token, and is committed by a
rename out of it. A process that takes a run over first moves that folder away, so that an earlier
writer, however late it wakes up, finds nothing to rename. A holder does the same to its own earlier
workers when it starts new ones: its starts are counted, and the folder's name carries that number.
"""

from __future__ import annotations

import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from raymill.durable import fsync_path
from raymill.errors import CheckpointError
from raymill.reading import entries, is_folder

_WRITING = "writing-"
_NAME = re.compile(rf"{_WRITING}(\d+)(?:\.(\d+))?")


class FencedError(CheckpointError):
    """Another writer has taken the run over; nothing from this one can be committed any more."""


def writing_folder(checkpoints: Path, token: int, start: int = 0) -> Path:
    """Return the folder in which workers of this start, by the holder of this token, write
    checkpoints."""
    return checkpoints / f"{_WRITING}{token}{f'.{start}' if start else ''}"


def raise_fence(checkpoints: Path, token: int) -> None:
    """Let only the holder of `token` write; delete half-written checkpoints of earlier holders."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    # Repeated until there is none: a folder that vanishes meanwhile was moved by a newer holder, or
    # renamed by its own.
    while earlier := [folder for folder in _folders(checkpoints) if _fence_of(folder)[0] < token]:
        for folder in earlier:
            with suppress(FileNotFoundError):
                folder.replace(folder.with_name(f"fenced-{uuid.uuid4().hex[:8]}"))
    writing_folder(checkpoints, token).mkdir(exist_ok=True)
    # Moved folders can no longer become checkpoints, so they may be deleted at leisure.
    for grave in entries(checkpoints):
        if grave.name.startswith("fenced-"):
            shutil.rmtree(grave, ignore_errors=True)


def advance_fence(checkpoints: Path, token: int, start: int) -> Path:
    """Let only workers of this start write; return their folder, with everything that was left in
    it.

    Raises:
        FencedError: the holder of `token` may not write, or has started newer workers.
    """
    target = writing_folder(checkpoints, token, start)
    own = sorted(_fence_of(folder) for folder in _folders(checkpoints))
    # The newest folder of this holder is looked at first: it may already be this start's.
    for fence in reversed([fence for fence in own if fence[0] == token]):
        if fence[1] > start:
            break
        if fence[1] == start:
            return target
        # The folder is gone where a newer holder was faster.
        with suppress(FileNotFoundError):
            writing_folder(checkpoints, *fence).replace(target)
            fsync_path(checkpoints)
            return target
    raise _fenced(token)


def lower_fence(checkpoints: Path, token: int) -> None:
    """Remove the writing folders of the holder of `token`, which gives the run up."""
    for folder in _folders(checkpoints):
        if _fence_of(folder)[0] == token:
            shutil.rmtree(folder, ignore_errors=True)


def check_fence(checkpoints: Path, token: int, start: int = 0) -> None:
    """Check that workers of this start may still write.

    Raises:
        FencedError: they may not.
        OSError: the folder of checkpoints is gone, so that nothing is known.
        StorageError: the folder can't be read.
    """
    if not is_folder(writing_folder(checkpoints, token, start)):
        # If the parent folder is gone as well, the storage is away, and nothing is known.
        checkpoints.stat()
        raise _fenced(token)


def _fenced(token: int) -> FencedError:
    return FencedError(
        f"another process has taken this run over, or newer workers have been started (token {token} no "
        "longer holds it); checkpoints that they committed stay, and this process ends"
    )


def _folders(checkpoints: Path) -> list[Path]:
    return [path for path in entries(checkpoints) if _NAME.fullmatch(path.name)]


def _fence_of(folder: Path) -> tuple[int, int]:
    """Return the token and the start in a folder's name."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None, f"{folder} isn't a folder for writing checkpoints"
    return int(match[1]), int(match[2] or 0)
