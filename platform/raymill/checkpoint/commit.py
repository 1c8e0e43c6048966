"""The two-phase commit: every rank writes and flushes, all vote, rank 0 makes it real with one rename.

Until the rename nothing that looks like a checkpoint exists; after it, everything the manifest names
is on the disk. A rank that fails votes no, and then no rank believes in the checkpoint. Where the rename
starts is the fence's: a writer that lost the run can't make it.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from raymill.checkpoint.fence import FencedError, check_fence, writing_folder
from raymill.checkpoint.fragments import (
    Fragments,
    Rest,
    Slice,
    index_to_json,
    merge_slices,
    write_fragments,
)
from raymill.checkpoint.ledger import Commit
from raymill.checkpoint.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    verify,
)
from raymill.checkpoint.remote import RemoteRun
from raymill.checkpoint.retention import step_directory_name
from raymill.durable import fsync_path, sha256_file, write_atomic
from raymill.errors import CheckpointError, StorageError
from raymill.reading import is_folder

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
    fragments: Fragments,
    group: Group,
    remote: RemoteRun | None = None,
    rest: Rest | None = None,
) -> Path:
    """Write a checkpoint of `manifest.step` with all ranks, as the holder of `manifest.token`; collective.

    `manifest.files` is filled in here. `fragments` are this rank's alone. Where the run is kept in an object
    store, `remote`, the checkpoint is real from the moment that its ledger names it. `rest` is called
    between the pieces that are written.

    Raises:
        FencedError: on every rank: the token is another's by now.
        CheckpointError: on every rank, naming the rank that couldn't write and why. What was
            committed before is untouched.
    """
    name = step_directory_name(manifest.step)
    attempt = group.broadcast(uuid.uuid4().hex)
    writing = writing_folder(checkpoints, manifest.token, manifest.start)
    temporary = writing / f"{name}-{manifest.token}.{manifest.start}-{attempt}"
    votes = group.gather(_write_rank(temporary, fragments, group.rank, remote, rest))
    refusals = [f"rank {rank}: {vote}" for rank, vote in enumerate(votes) if isinstance(vote, str)]
    outcome: CheckpointError | None = None
    if group.rank == 0:
        try:
            if refusals:
                raise CheckpointError("; ".join(refusals))
            written = [vote for vote in votes if not isinstance(vote, str)]
            _commit_rank_zero(temporary, checkpoints / name, manifest, shapes, written, remote)
        except CheckpointError as error:
            outcome = _explained(error, checkpoints, manifest, remote)
            shutil.rmtree(temporary, ignore_errors=True)
            if remote is not None:
                with suppress(StorageError, CheckpointError):  # the next start deletes it
                    remote.discard(temporary.name)
    outcome = group.broadcast(outcome)
    if outcome is not None:
        raise outcome
    return checkpoints / name


def _explained(
    error: CheckpointError, checkpoints: Path, manifest: Manifest, remote: RemoteRun | None
) -> CheckpointError:
    """What a failed commit means: the run is another's, or this checkpoint just isn't there."""
    try:
        # The storage that refused the checkpoint may not answer this either.
        with suppress(OSError, StorageError):
            check_fence(checkpoints, manifest.token, manifest.start)
        if remote is not None:
            with suppress(StorageError):
                remote.check()
    except FencedError as fenced:
        return fenced
    return CheckpointError(
        f"the checkpoint of step {manifest.step} was not committed ({error}); "
        "earlier checkpoints are untouched"
    )


_Written = tuple[str, FileRecord, dict[str, Slice]]


def _write_rank(
    directory: Path, fragments: Fragments, rank: int, remote: RemoteRun | None, rest: Rest | None
) -> _Written | str:
    """Write this rank's file; a failure comes back as text, so that the vote always takes place."""
    file = f"rank-{rank:05d}.safetensors"
    try:
        directory.mkdir(exist_ok=True)  # not its parent: the fence's folder is there, or we lost it
        slices, size, sha256 = write_fragments(directory, file, fragments, rest)
        if remote is not None:
            remote.upload(directory / file, directory.name)
        return file, FileRecord(size, sha256), slices
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
    remote: RemoteRun | None,
) -> None:
    """Index, manifest, rename; and before the rename, in an object store, its ledger's entry.

    Raises:
        CheckpointError: one of them failed.
    """
    try:
        files = {file: record for file, record, _ in written}
        index = merge_slices(shapes, [slices for _, _, slices in written])
        index_path = temporary / INDEX_NAME
        write_atomic(index_path, json.dumps(index_to_json(index)))
        files[INDEX_NAME] = FileRecord(index_path.stat().st_size, sha256_file(index_path))
        body: dict[str, Any] = replace(manifest, files=files).to_json()
        write_atomic(temporary / MANIFEST_NAME, json.dumps(body, indent=1))
        fsync_path(temporary)
        if remote is not None:
            remote.upload(index_path, temporary.name)
            remote.upload(temporary / MANIFEST_NAME, temporary.name)
            commit = Commit(manifest.step, temporary.name, body["digest"])
            remote.publish(commit, final.parent.parent)
        if _is_there(final, body["digest"]):  # a try before this one failed after its rename
            shutil.rmtree(temporary)
        else:
            temporary.replace(final)
        fsync_path(final.parent)
    except (OSError, ValueError, StorageError) as error:
        raise CheckpointError(f"rank 0: {type(error).__name__}: {error}") from error


def _is_there(final: Path, digest: str) -> bool:
    """Tell whether this very checkpoint is in its place. One that can't be read isn't taken for absent."""
    try:
        return is_folder(final) and verify(final).digest == digest
    except CheckpointError:
        return False
