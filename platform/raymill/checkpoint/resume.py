"""Resume a run: find its newest whole checkpoint, and check that this run may continue it.

Whoever reads a checkpoint verifies what it reads. So only manifest, index and the sizes of the files
are looked at here, and a checkpoint in which a reader then finds damage is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from raymill.checkpoint.file_record import DamagedError
from raymill.checkpoint.fragments import FragmentReader
from raymill.checkpoint.ledger import Commit
from raymill.checkpoint.manifest import CheckpointManifest, inspect
from raymill.checkpoint.remote import RemoteRun, is_copy
from raymill.checkpoint.retention import CACHE, committed_steps, set_aside, step_directory_name
from raymill.checkpoint.store_files import StoreFiles
from raymill.checkpoint.verified_files import LocalFiles
from raymill.durable import JsonObject
from raymill.errors import CheckpointError, ConfigError
from raymill.schema.identity import CAME_LATER, FORMERLY, is_changeable
from raymill.schema.renamed import current_names
from raymill.schema.tree import without_secrets

_FORK = re.compile(r"(?P<run>[A-Za-z0-9_][A-Za-z0-9._-]*)@(?P<step>\d+)")


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """Checkpoint whose manifest and files' sizes verify, and the damaged ones that were passed over.

    The bytes of the files are verified as they are read. With a `uri` they are read from an object
    store, and `directory` is where a copy of them would be.
    """

    directory: Path
    manifest: CheckpointManifest
    passed_over: tuple[str, ...] = ()
    damaged: tuple[Path, ...] = ()
    uri: str | None = None

    @property
    def location(self) -> str:
        """Location of the files, as in the errors of those who read them."""
        return self.uri or str(self.directory)

    @property
    def cache(self) -> Path:
        """Folder in which the ranks of a node share what they read from an object store."""
        return self.directory.with_name(f"{CACHE}{self.manifest.digest[:16]}")

    def reader(self, shared: bool = False) -> FragmentReader:
        """Open the checkpoint's parameters and moments; with `shared`, through the cache."""
        if self.uri is None:
            return FragmentReader(LocalFiles(self.directory), self.manifest)
        return FragmentReader(StoreFiles(self.uri, self.cache if shared else None), self.manifest)


@dataclass(frozen=True)
class _Candidate:
    """Checkpoint that may be whole. `inspect` raises CheckpointError if it isn't."""

    directory: Path
    inspect: Callable[[], CheckpointManifest]
    uri: str | None = None

    def open(self, known: Mapping[str, str]) -> VerifiedCheckpoint:
        location = self.uri or str(self.directory)
        if location in known:
            raise DamagedError(known[location], location)
        return VerifiedCheckpoint(self.directory, self.inspect(), uri=self.uri)


def newest_verified(
    checkpoints: Path,
    known: Mapping[str, str] | None = None,
    check: Callable[[Path], CheckpointManifest] = inspect,
    remote: RemoteRun | None = None,
) -> VerifiedCheckpoint | None:
    """Return the newest checkpoint that passes the check, or None when there is none at all.

    Damaged checkpoints are passed over and reported in the result: those that don't pass, and those
    whose location is among the `known` ones, with the reason. Of a run in an object store, `remote`,
    only what its ledger names counts, and a copy here is preferred.

    Raises:
        CheckpointError: checkpoints exist but none verifies. A fresh start would silently discard
            the run, so the user must decide.
        StorageError: a checkpoint can't be read. It may be whole, so no older one is used instead.
    """
    passed_over: list[str] = []
    damaged: list[Path] = []
    candidates: Iterable[_Candidate]
    if remote is None:
        steps = [directory for _, directory in reversed(committed_steps(checkpoints))]
        candidates = (_Candidate(path, partial(check, path)) for path in steps)
    else:
        candidates = (
            candidate
            for commit in reversed(remote.commits())
            for candidate in _of_commit(remote, commit, checkpoints)
        )
    # The newest first, so that older ones aren't looked at.
    for candidate in candidates:
        try:
            found = candidate.open(known or {})
        except CheckpointError as error:
            passed_over.append(str(error))
            if candidate.uri is None:
                damaged.append(candidate.directory)
            continue
        return replace(found, passed_over=tuple(passed_over), damaged=tuple(damaged))
    if passed_over:
        details = "\n".join(f"  - {text}" for text in passed_over)
        place = checkpoints if remote is None else remote.uri
        raise CheckpointError(
            f"none of the {len(passed_over)} checkpoints under {place} verifies:\n{details}\n"
            "To start the run over, move that folder away; to keep it, restore the named files."
        )
    return None


def _of_commit(remote: RemoteRun, commit: Commit, checkpoints: Path) -> list[_Candidate]:
    """Return where a committed checkpoint is: here, since that is preferred, and in the store."""
    directory = checkpoints / step_directory_name(commit.step)
    stored = _Candidate(directory, partial(remote.inspect, commit), remote.uri_of(commit))
    if not is_copy(directory, commit):
        return [stored]
    return [_Candidate(directory, partial(inspect, directory)), stored]


def set_damaged_aside(
    checkpoint: VerifiedCheckpoint, error: DamagedError, remote: RemoteRun | None = None
) -> str:
    """Set a checkpoint aside in which a reader has found damage; return where it is now.

    Raises:
        CheckpointError: no other checkpoint is whole, so that the run would start over.
    """
    checkpoints = checkpoint.directory.parent
    newest_verified(checkpoints, known={error.location: str(error)}, remote=remote)
    if checkpoint.uri is None or remote is None:
        return str(set_aside(checkpoint.directory))
    remote.mark_damaged(checkpoint.uri, str(error))
    return checkpoint.uri


def parse_fork(reference: str) -> tuple[str, int]:
    """Split `name@step` into run name and step.

    Raises:
        ConfigError: the reference has another form.
    """
    match = _FORK.fullmatch(reference)
    if match is None:
        raise ConfigError([f"run.from={reference!r}: expected <run name>@<step>, as in base@1000"])
    return match["run"], int(match["step"])


def find_fork(runs: Path, reference: str, remote: RemoteRun | None = None) -> VerifiedCheckpoint:
    """Return the checkpoint that `run.from=name@step` refers to; `remote` is that run, if it is in
    an object store.

    Raises:
        ConfigError: there is no such run or step; names the steps that exist.
        CheckpointError: the checkpoint doesn't verify.
    """
    run, step = parse_fork(reference)
    checkpoints = runs / run / "checkpoints"
    commits = {} if remote is None else {commit.step: commit for commit in remote.commits()}
    available = (
        [number for number, _ in committed_steps(checkpoints)] if remote is None else list(commits)
    )
    if step not in available:
        known = ", ".join(map(str, available)) or "none"
        place = checkpoints if remote is None else remote.uri
        raise ConfigError(
            [f"run.from={reference}: {place} has no step {step} (available: {known})"]
        )
    if remote is not None:
        *copies, stored = _of_commit(remote, commits[step], checkpoints)
        for copy in copies:
            with suppress(CheckpointError):
                return copy.open({})
        return stored.open({})
    directory = checkpoints / step_directory_name(step)
    return VerifiedCheckpoint(directory, inspect(directory))


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
