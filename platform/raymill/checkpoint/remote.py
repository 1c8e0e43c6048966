"""Run in an object store: `checkpoints/`, `ledger/`, `lease/`, and the run directory's files.

Work is done in a folder on this machine, which holds the same as the store, or less. A checkpoint
is uploaded file by file, by the ranks that wrote them, into a folder of its own, and is committed
once the ledger names it. Files that change are kept in one folder per holder, `files/<token>/`, so
that an earlier holder who is late changes nothing: the newest folder with a journal counts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from raymill.checkpoint.file_record import DamagedError
from raymill.checkpoint.ledger import Commit, Ledger
from raymill.checkpoint.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    CheckpointManifest,
    parse_manifest,
    read_manifest,
)
from raymill.checkpoint.retention import (
    RetentionPolicy,
    committed_steps,
    remove,
    set_aside,
    step_directory_name,
    steps_to_delete,
)
from raymill.checkpoint.store_files import StoreFiles
from raymill.checkpoint.verified_files import VerifiedFiles
from raymill.durable import write_atomic
from raymill.errors import CheckpointError, ConfigError, StorageError
from raymill.reading import entries, is_file, is_folder, read_bytes, read_text
from raymill.storage.bucket import Bucket
from raymill.storage.mirror import Mirror

# Records on this machine the token under which the folder was last used.
HELD_NAME = "held.json"
_CHECKPOINTS = "checkpoints"
_JOURNAL = "metrics.jsonl"
_FILES = "files"
# Object in a checkpoint's folder that says what damage a reader has found.
_DAMAGE = "DAMAGED.txt"
_FOLDER = re.compile(r"step-\d+-(\d+)\.(\d+)-[0-9a-f]+")
# Names of files that are of no use to another machine.
_LOCAL = (_CHECKPOINTS, "ray", "pulse", HELD_NAME)
# Names of folders that are uploaded once they are complete, and aren't needed to continue.
_RESULTS = ("export", "adapter", "logs")


class RemoteRun:
    """Run at a URI, as workers of this start by the holder of `token` read and change it.

    Every method raises StorageError where the store can't be reached.
    """

    def __init__(self, uri: str, token: int = 0, start: int = 0) -> None:
        self.uri = uri
        self._bucket = Bucket(uri)
        self._ledger = Ledger(self._bucket, token, start)
        self._token = token
        self._start = start
        self._mirror: Mirror | None = None

    def fence_off(self) -> None:
        """Fence off every earlier writer, and delete their uploads that were never committed.

        Raises:
            FencedError: another process holds the run.
        """
        known = {commit.folder for commit in self._ledger.fence_off().commits}
        for name in self._bucket.folders(_CHECKPOINTS):
            # Only those of earlier writers, which can commit nothing any more: the uploads of a newer
            # writer may be about to be committed.
            if name not in known and _writer_of(name) < (self._token, self._start):
                self._delete(f"{_CHECKPOINTS}/{name}")

    def check(self) -> None:
        """Check that this writer may still commit.

        Raises:
            FencedError: another process holds the run.
        """
        self._ledger.check()

    def upload(self, path: Path, folder: str) -> None:
        """Upload a file of a checkpoint that is being written in `folder`."""
        self._bucket.upload(path, f"{_CHECKPOINTS}/{folder}/{path.name}")

    def discard(self, folder: str) -> None:
        """Delete a checkpoint that wasn't committed, after removing it from the ledger.

        The ledger comes first because the answer to the request that commits may have been lost.

        Raises:
            FencedError: another process holds the run.
        """
        self._remove({folder})

    def publish(self, commit: Commit, run_dir: Path) -> None:
        """Commit a checkpoint whose files are all uploaded, after uploading the run's other files.

        Raises:
            FencedError: another process holds the run.
        """
        self.upload_files(run_dir)
        self._ledger.add(commit)

    def upload_files(self, run_dir: Path) -> None:
        """Upload what changed in the run directory, except results."""
        if self._mirror is None:
            own = Bucket(f"{self.uri}/{_FILES}/{self._token:08d}")
            self._mirror = Mirror(own, run_dir, _is_needed)
        # The journal comes last, so that no other file refers to lines that it lacks.
        self._mirror.push(last=_JOURNAL)
        for token in self._bucket.folders(_FILES):
            if int(token) < self._token:
                self._delete(f"{_FILES}/{token}")

    def upload_results(self, run_dir: Path, marker: str) -> None:
        """Upload the results of a finished run.

        A folder with a `marker` is without it in the store until everything else is uploaded.

        Raises:
            FencedError: another process holds the run.
        """
        self._ledger.check_holder()
        # A marker of an earlier export must not vouch for files that are about to change.
        for path in (folder / marker for folder in entries(run_dir)):
            key = path.relative_to(run_dir).as_posix()
            if is_file(path) and self._bucket.get(key) != read_bytes(path):
                self._bucket.delete([key])
        Mirror(self._bucket, run_dir, _is_result).push(last=marker)

    def apply_retention(self, policy: RetentionPolicy, protected: Collection[Path]) -> None:
        """Delete the checkpoints that the policy doesn't keep; the ledger drops them first.

        Raises:
            FencedError: another process holds the run.
        """
        commits = self._ledger.state().commits
        names = {path.name for path in protected}
        steps = [commit.step for commit in commits]
        # Protected paths are those of local checkpoints, whose names carry their steps.
        safe = [step for step in steps if step_directory_name(step) in names]
        doomed = steps_to_delete(steps, policy, safe)
        folders = {commit.folder for commit in commits if commit.step in doomed}
        if folders:
            self._remove(folders)

    def steps(self) -> list[int]:
        """List the steps of the run's checkpoints, in order.

        Raises:
            CheckpointError: the ledger can't be read.
        """
        return [commit.step for commit in self.commits()]

    def commits(self) -> tuple[Commit, ...]:
        """Return the run's checkpoints, oldest first.

        Raises:
            CheckpointError: the ledger can't be read.
        """
        return self._ledger.state().commits

    def download(self, run_dir: Path, say: Callable[[str], None]) -> None:
        """Download, as the holder of the run, what it takes to continue it.

        That is the run's files, where another machine wrote them last. Checkpoints are read by the
        ranks that need them, range by range.

        Raises:
            CheckpointError: the ledger can't be read.
        """
        held = run_dir / HELD_NAME
        # The folder is up to date if it was last used under the token before this one: then no other
        # machine held the run in between.
        before, now = (f"{self.uri} {token}" for token in (self._token - 1, self._token))
        if not is_file(held) or read_text(held) != before:
            self._download_files(run_dir)
        write_atomic(held, now)
        self.tidy(run_dir, say)

    def tidy(self, run_dir: Path, say: Callable[[str], None]) -> None:
        """Remove local checkpoints that aren't copies of the store's, or set them aside."""
        commits = self.commits()
        by_step = {commit.step: commit for commit in commits}
        for step, directory in committed_steps(run_dir / _CHECKPOINTS):
            if step in by_step:
                # It may stem from an attempt that never committed it.
                if not is_copy(directory, by_step[step]):
                    remove(directory)
            # Retention has deleted older ones in the store; newer ones were never committed there.
            elif commits and step <= commits[-1].step:
                remove(directory)
            else:
                say(f"{directory} isn't in {self.uri}: set aside as {set_aside(directory).name}")

    def uri_of(self, commit: Commit) -> str:
        """Return the URI of a checkpoint's folder."""
        return f"{self.uri}/{_CHECKPOINTS}/{commit.folder}"

    def inspect(self, commit: Commit) -> CheckpointManifest:
        """Check a checkpoint's manifest and index, and that its files have their sizes.

        Raises:
            CheckpointError: a file is missing or has another size, the index was altered, or the
                checkpoint was marked as damaged.
        """
        uri = self.uri_of(commit)
        sizes = self._bucket.sizes(f"{_CHECKPOINTS}/{commit.folder}")
        mark = f"{_CHECKPOINTS}/{commit.folder}/{_DAMAGE}"
        if mark in sizes:
            raise DamagedError((self._bucket.get(mark) or b"").decode(errors="replace"), uri)
        data = self._bucket.get(f"{_CHECKPOINTS}/{commit.folder}/{MANIFEST_NAME}")
        if data is None:
            raise DamagedError(f"{uri} has no {MANIFEST_NAME}", uri)
        manifest = parse_manifest(data.decode(errors="replace"), uri)
        if manifest.digest != commit.digest:
            raise DamagedError(f"{uri} isn't the checkpoint that was committed", uri)
        for name, record in manifest.files.items():
            size = sizes.get(f"{_CHECKPOINTS}/{commit.folder}/{name}")
            if size is None:
                raise DamagedError(f"{uri}/{name} is missing", uri)
            if size != record.bytes:
                raise DamagedError(
                    f"{uri}/{name} has {size} bytes, its manifest says {record.bytes}", uri
                )
        VerifiedFiles(StoreFiles(uri), manifest.files).verify([INDEX_NAME])
        return manifest

    def mark_damaged(self, uri: str, reason: str) -> None:
        """Mark a checkpoint in the store as damaged, so that no start chooses it; its files stay."""
        self._bucket.put(f"{_CHECKPOINTS}/{uri.rpartition('/')[2]}/{_DAMAGE}", reason.encode())

    def verified(self) -> tuple[list[CheckpointManifest], list[str]]:
        """Verify every byte of every checkpoint in the store.

        Return the manifests, oldest first, and the problems of those that don't verify.
        """
        manifests, problems = [], []
        for commit in self._ledger.state().commits:
            try:
                manifests.append(self._verified(commit))
            except (CheckpointError, StorageError) as error:
                # A run that continues meanwhile may have deleted it.
                if commit not in self._ledger.state().commits:
                    continue
                if isinstance(error, StorageError):
                    raise
                problems.append(str(error))
        return manifests, problems

    def _verified(self, commit: Commit) -> CheckpointManifest:
        manifest = self.inspect(commit)
        files = VerifiedFiles(StoreFiles(self.uri_of(commit)), manifest.files)
        files.verify(manifest.files)
        return manifest

    def download_files(self, folder: Path) -> None:
        """Download the run's files for inspection.

        Raises:
            ConfigError: there is no such run; names those that exist.
        """
        if not self._download_files(folder):
            root, _, name = self.uri.rpartition("/")
            if self._bucket.sizes("lease"):
                raise ConfigError([f"run.name={name}: this run has committed nothing yet"])
            runs = Bucket(root).folders()
            raise ConfigError(
                [
                    f"run.name={name}: {root} has no such run; existing runs: {', '.join(runs) or 'none'}"
                ]
            )

    def _download_files(self, folder: Path) -> bool:
        """Download the run's files; return whether any holder has uploaded some."""
        names = (key.split("/") for key in self._bucket.sizes(_FILES))
        tokens = [name[1] for name in names if name[2:] == [_JOURNAL]]
        if tokens:
            Mirror(Bucket(f"{self.uri}/{_FILES}/{max(tokens)}"), folder).pull()
        return bool(tokens)

    def _remove(self, folders: set[str]) -> None:
        """Remove checkpoints from the ledger, and then delete their files."""
        self._ledger.remove(folders)
        for folder in folders:
            self._delete(f"{_CHECKPOINTS}/{folder}")

    def _delete(self, folder: str) -> None:
        """Delete a folder, its manifest first."""
        # Without its manifest, a half-deleted checkpoint isn't taken for whole.
        keys = self._bucket.sizes(folder)
        self._bucket.delete(sorted(keys, key=lambda key: not key.endswith(MANIFEST_NAME)))


def _writer_of(folder: str) -> tuple[int, int]:
    """Return the token and start in a checkpoint folder's name; the highest ones for other
    folders."""
    match = _FOLDER.fullmatch(folder)
    return (int(match[1]), int(match[2])) if match else (sys.maxsize, 0)


def is_copy(directory: Path, commit: Commit) -> bool:
    """Return whether a directory holds this very checkpoint, by its manifest."""
    with suppress(CheckpointError):
        return is_folder(directory) and read_manifest(directory).digest == commit.digest
    return False


def _is_needed(name: str) -> bool:
    """Return whether a file of the run directory is needed to continue on another machine."""
    first = name.split("/")[0]
    return first not in (*_LOCAL, *_RESULTS) and not first.startswith(("stop-requested", "."))


def _is_result(name: str) -> bool:
    """Return whether a file of the run directory belongs to the results."""
    return name.split("/")[0] in _RESULTS
