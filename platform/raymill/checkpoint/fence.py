"""Who may commit, decided by the file system: a checkpoint is made in a folder that carries the writer's token
and becomes real by a rename out of it. Whoever takes a run over moves that folder away first, so that a
writer of before, however late it wakes, finds nothing to rename.
"""

from __future__ import annotations

import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from raymill.errors import CheckpointError

_WRITING = "writing-"


class FencedError(CheckpointError):
    """Another process has taken the run over; nothing of this one's is committed any more."""


def writing_folder(checkpoints: Path, token: int) -> Path:
    """Where the holder of this token makes its checkpoints."""
    return checkpoints / f"{_WRITING}{token}"


def raise_fence(checkpoints: Path, token: int) -> None:
    """Let the holder of `token` write, and nobody from before; what they left half-written is deleted."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    for folder in checkpoints.glob(f"{_WRITING}*"):
        if int(folder.name.removeprefix(_WRITING)) < token:
            with suppress(FileNotFoundError):  # a newer holder has moved it
                folder.replace(folder.with_name(f"fenced-{uuid.uuid4().hex[:8]}"))
    writing_folder(checkpoints, token).mkdir(exist_ok=True)
    for grave in checkpoints.glob("fenced-*"):
        shutil.rmtree(grave, ignore_errors=True)


def lower_fence(checkpoints: Path, token: int) -> None:
    """The holder of `token` is none any more."""
    shutil.rmtree(writing_folder(checkpoints, token), ignore_errors=True)


def check_fence(checkpoints: Path, token: int) -> None:
    """
    Raises:
        FencedError: the holder of `token` may not write.
    """
    if not writing_folder(checkpoints, token).is_dir():
        raise FencedError(
            f"another process has taken this run over (token {token} doesn't hold it any more); "
            "what it committed stands, this one has ended"
        )
