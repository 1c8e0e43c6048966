"""The two-phase commit: every rank writes and flushes, all vote, rank 0 makes it real with one rename.

Until the rename nothing that looks like a checkpoint exists; after it, everything the manifest names
is on the disk. A rank that fails votes no, and then no rank believes in the checkpoint.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from raymill.checkpoint.fragments import (
    FloatArray,
    Slice,
    index_to_json,
    merge_slices,
    write_fragments,
)
from raymill.checkpoint.manifest import INDEX_NAME, MANIFEST_NAME, FileRecord, Manifest
from raymill.checkpoint.retention import step_directory_name
from raymill.durable import fsync_path, sha256_file, write_atomic
from raymill.errors import CheckpointError

T = TypeVar("T")


class Group(Protocol):
    """What a commit needs of the worker group."""

    rank: int
    world_size: int

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        ...

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        ...


def commit(
    checkpoints: Path,
    manifest: Manifest,
    shapes: Mapping[str, Sequence[int]],
    fragments: Iterable[tuple[str, int, Mapping[str, FloatArray]]],
    group: Group,
) -> Path:
    """Write a checkpoint of `manifest.step` with all ranks; collective.

    `manifest.files` is filled in here. `fragments` are this rank's alone.

    Raises:
        CheckpointError: on every rank, naming the rank that couldn't write and why. What was
            committed before is untouched.
    """
    name = step_directory_name(manifest.step)
    temporary = checkpoints / group.broadcast(f"{name}.tmp-{uuid.uuid4().hex}")
    temporary.mkdir(parents=True, exist_ok=True)
    votes = group.gather(_write_rank(temporary, fragments, group.rank))
    refusals = [f"rank {rank}: {vote}" for rank, vote in enumerate(votes) if isinstance(vote, str)]
    outcome: str | None = "; ".join(refusals) or None
    if group.rank == 0:
        if outcome is None:
            written = [vote for vote in votes if not isinstance(vote, str)]
            outcome = _commit_rank_zero(temporary, checkpoints / name, manifest, shapes, written)
        if outcome is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    outcome = group.broadcast(outcome)
    if outcome is not None:
        raise CheckpointError(
            f"the checkpoint of step {manifest.step} was not committed ({outcome}); "
            "earlier checkpoints are untouched"
        )
    return checkpoints / name


_Written = tuple[str, FileRecord, dict[str, Slice]]


def _write_rank(
    directory: Path, fragments: Iterable[tuple[str, int, Mapping[str, FloatArray]]], rank: int
) -> _Written | str:
    """Write this rank's file; a failure comes back as text, so that the vote always takes place."""
    file = f"rank-{rank:05d}.safetensors"
    try:
        slices = write_fragments(directory, file, fragments)
        path = directory / file
        return file, FileRecord(path.stat().st_size, sha256_file(path)), slices
    except (
        Exception
    ) as error:  # the other ranks wait for this vote: whatever it is, it is passed on
        return f"{type(error).__name__}: {error}"


def _commit_rank_zero(
    temporary: Path,
    final: Path,
    manifest: Manifest,
    shapes: Mapping[str, Sequence[int]],
    written: Sequence[_Written],
) -> str | None:
    """Index, manifest, rename; returns why it failed, or None."""
    try:
        files = {file: record for file, record, _ in written}
        index = merge_slices(shapes, [slices for _, _, slices in written])
        index_path = temporary / INDEX_NAME
        write_atomic(index_path, json.dumps(index_to_json(index)))
        files[INDEX_NAME] = FileRecord(index_path.stat().st_size, sha256_file(index_path))
        body: dict[str, Any] = replace(manifest, files=files).to_json()
        write_atomic(temporary / MANIFEST_NAME, json.dumps(body, indent=1))
        fsync_path(temporary)
        if final.exists():  # what resume found damaged stays for inspection, under another name
            final.replace(final.with_name(f"{final.name}.damaged-{uuid.uuid4().hex[:8]}"))
        temporary.replace(final)
        fsync_path(final.parent)
    except (OSError, CheckpointError, ValueError) as error:
        return f"rank 0: {type(error).__name__}: {error}"
    return None
