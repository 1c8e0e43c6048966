"""Two-phase commit: every rank writes and flushes, all vote, and rank 0 commits with one rename.

Before the rename nothing looks like a checkpoint; after it, everything that the manifest names is
on the disk. A rank that fails votes no, and then no rank treats the checkpoint as committed. The
rename starts in a folder that the fence controls: a writer that lost the run can't make it.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from raymill.checkpoint.fence import FencedError, check_fence, writing_folder
from raymill.checkpoint.file_record import FileRecord
from raymill.checkpoint.fragments import Fragments, Throttle, write_fragments
from raymill.checkpoint.layout import Layout, file_of
from raymill.checkpoint.ledger import Commit
from raymill.checkpoint.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    CheckpointManifest,
    inspect,
)
from raymill.checkpoint.remote import RemoteRun
from raymill.checkpoint.retention import step_directory_name
from raymill.checkpoint.votes import CommitVote, layout_digest, refusals
from raymill.durable import fsync_path, sha256_file, write_atomic
from raymill.errors import CheckpointError, StorageError
from raymill.reading import is_folder

T = TypeVar("T")


class CommitGroup(Protocol):
    """Collectives of the worker group that a commit needs."""

    rank: int
    world_size: int

    def gather_to_zero(self, data: bytes) -> list[bytes]:
        """Return every rank's bytes, of which all have equally many, on rank 0; [] elsewhere."""
        ...

    def broadcast(self, value: T) -> T:
        """Return rank 0's value, on every rank."""
        ...


def commit(
    checkpoints: Path,
    manifest: CheckpointManifest,
    layout: Layout,
    fragments: Fragments,
    group: CommitGroup,
    remote: RemoteRun | None = None,
    throttle: Throttle | None = None,
) -> Path:
    """Write a checkpoint of `manifest.step` with all ranks, as the holder of `manifest.token`;
    collective.

    `manifest.files` is filled in here. `fragments` are this rank's own, those that `layout` gives
    it. Where the run is kept in an object store, `remote`, the checkpoint is committed once the
    store's ledger names it. `throttle` is called between the pieces that are written.

    Rank 0 receives VOTE_BYTES from each rank, and the others its decision alone.

    Raises:
        FencedError: on every rank: another process holds the run by now.
        CheckpointError: on every rank: a rank couldn't write; names it and the reason. Earlier
            checkpoints are untouched.
    """
    name = step_directory_name(manifest.step)
    # All ranks write into one folder, whose name no earlier try has used.
    attempt = group.broadcast(uuid.uuid4().hex)
    writing = writing_folder(checkpoints, manifest.token, manifest.start)
    temporary = writing / f"{name}-{manifest.token}.{manifest.start}-{attempt}"
    vote = _write_rank(temporary, layout, fragments, group.rank, remote, throttle)
    gathered = group.gather_to_zero(vote.encode())
    outcome: CheckpointError | None = None
    if group.rank == 0:
        try:
            layout.check()
            votes = [CommitVote.decode(data) for data in gathered]
            if reasons := refusals(votes, layout):
                raise CheckpointError("; ".join(reasons))
            records = [vote.record for vote in votes if vote.record is not None]
            _commit_rank_zero(temporary, checkpoints / name, manifest, layout, records, remote)
        except CheckpointError as error:
            outcome = _failure(error, checkpoints, manifest, remote)
            shutil.rmtree(temporary, ignore_errors=True)
            if remote is not None:
                # What stays behind here is deleted at the next start.
                with suppress(StorageError, CheckpointError):
                    remote.discard(temporary.name)
    outcome = group.broadcast(outcome)
    if outcome is not None:
        raise outcome
    return checkpoints / name


def _failure(
    error: CheckpointError,
    checkpoints: Path,
    manifest: CheckpointManifest,
    remote: RemoteRun | None,
) -> CheckpointError:
    """Return the error to raise for a failed commit: FencedError where the run is another
    process's."""
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


def _write_rank(
    directory: Path,
    layout: Layout,
    fragments: Fragments,
    rank: int,
    remote: RemoteRun | None,
    throttle: Throttle | None,
) -> CommitVote:
    """Write this rank's file; return a failure as a vote, so that the vote always takes place."""
    try:
        # Not its parent: if the fence's folder is gone, another process has taken the run over.
        directory.mkdir(exist_ok=True)
        record = write_fragments(directory, rank, layout, fragments, throttle)
        if remote is not None:
            remote.upload(directory / file_of(rank), directory.name)
        return CommitVote(record, layout_digest(layout))
    # The other ranks wait for this vote, so any failure must become one.
    except Exception as error:
        return CommitVote(refusal=f"{type(error).__name__}: {error}")


def _commit_rank_zero(
    temporary: Path,
    final: Path,
    manifest: CheckpointManifest,
    layout: Layout,
    records: Sequence[FileRecord],
    remote: RemoteRun | None,
) -> None:
    """Write index and manifest, publish to the object store's ledger if there is one, and rename.

    Raises:
        CheckpointError: one of the steps failed.
    """
    try:
        files = {file_of(rank): record for rank, record in enumerate(records)}
        index_path = temporary / INDEX_NAME
        write_atomic(index_path, json.dumps(layout.to_json()))
        files[INDEX_NAME] = FileRecord(index_path.stat().st_size, sha256_file(index_path))
        body = replace(manifest, files=files).to_json()
        write_atomic(temporary / MANIFEST_NAME, json.dumps(body, indent=1))
        # Everything in the folder must be on the disk before the rename.
        fsync_path(temporary)
        if remote is not None:
            remote.upload(index_path, temporary.name)
            remote.upload(temporary / MANIFEST_NAME, temporary.name)
            commit = Commit(manifest.step, temporary.name, body["digest"])
            remote.publish(commit, final.parent.parent)
        # An earlier try may have failed after its rename.
        if _is_committed(final, body["digest"]):
            shutil.rmtree(temporary)
        else:
            temporary.replace(final)
        # The rename itself must survive a power cut, too.
        fsync_path(final.parent)
    except (OSError, ValueError, StorageError) as error:
        raise CheckpointError(f"rank 0: {type(error).__name__}: {error}") from error


def _is_committed(final: Path, digest: str) -> bool:
    """Return whether this very checkpoint is committed; one that can't be read isn't taken for
    absent."""
    try:
        return is_folder(final) and inspect(final).digest == digest
    except CheckpointError:
        return False
