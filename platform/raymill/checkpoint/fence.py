"""Who may commit, decided by the file system: a checkpoint is made in a folder that carries the writer's token
and becomes real by a rename out of it. Whoever takes a run over moves that folder away first, so that a
writer of before, however late it wakes, finds nothing to rename. A holder does the same to its own workers of
before, when it starts others: its starts are counted, and the folder carries that number, too.
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
    """Another writer has taken the run over; nothing of this one's is committed any more."""


def writing_folder(checkpoints: Path, token: int, start: int = 0) -> Path:
    """Where workers of this start, by the holder of this token, make their checkpoints."""
    return checkpoints / f"{_WRITING}{token}{f'.{start}' if start else ''}"


def raise_fence(checkpoints: Path, token: int) -> None:
    """Let the holder of `token` write, and nobody from before; what they left half-written is deleted."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    # Until there is none: one that vanishes is moved by a newer holder, or by its own one to another name.
    while olds := [folder for folder in _folders(checkpoints) if _fence_of(folder)[0] < token]:
        for folder in olds:
            with suppress(FileNotFoundError):
                folder.replace(folder.with_name(f"fenced-{uuid.uuid4().hex[:8]}"))
    writing_folder(checkpoints, token).mkdir(exist_ok=True)
    for grave in entries(checkpoints):
        if grave.name.startswith("fenced-"):
            shutil.rmtree(grave, ignore_errors=True)


def advance_fence(checkpoints: Path, token: int, start: int) -> Path:
    """Let workers of this start write, and none of an earlier one's; returns their folder, with what was left
    in it.

    Raises:
        FencedError: the holder of `token` may not write, or has started others since.
    """
    target = writing_folder(checkpoints, token, start)
    own = sorted(_fence_of(folder) for folder in _folders(checkpoints))
    for fence in reversed([fence for fence in own if fence[0] == token]):
        if fence[1] > start:
            break
        if fence[1] == start:
            return target
        with suppress(FileNotFoundError):  # a newer holder was faster
            writing_folder(checkpoints, *fence).replace(target)
            fsync_path(checkpoints)
            return target
    raise _fenced(token)


def lower_fence(checkpoints: Path, token: int) -> None:
    """The holder of `token` is none any more."""
    for folder in _folders(checkpoints):
        if _fence_of(folder)[0] == token:
            shutil.rmtree(folder, ignore_errors=True)


def check_fence(checkpoints: Path, token: int, start: int = 0) -> None:
    """
    Raises:
        FencedError: workers of this start may not write.
        OSError: that can't be known: there is no folder of checkpoints.
        StorageError: nor can it be where that can't be looked at.
    """
    if not is_folder(writing_folder(checkpoints, token, start)):
        checkpoints.stat()
        raise _fenced(token)


def _fenced(token: int) -> FencedError:
    return FencedError(
        f"another process has taken this run over, or other workers have been started (token {token} doesn't "
        "hold it any more); what was committed since stands, this one has ended"
    )


def _folders(checkpoints: Path) -> list[Path]:
    return [path for path in entries(checkpoints) if _NAME.fullmatch(path.name)]


def _fence_of(folder: Path) -> tuple[int, int]:
    """The token and start that a folder carries."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)
