"""A run that is kept in an object store: `checkpoints/`, `ledger/`, `lease/`, and the run directory's files.

Work is done in a folder on this machine, which holds what the store holds, or less. A checkpoint is uploaded
file by file, by the ranks that wrote them, into a folder of its own, and is real once the ledger names it.
Files that change are kept in a folder of each holder's own, `files/<token>/`, so that a holder of before who
is late changes nothing: the newest one with a journal counts.
"""

from __future__ import annotations

import re
import shutil
import sys
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from raymill.checkpoint.ledger import Commit, Ledger
from raymill.checkpoint.manifest import (
    MANIFEST_NAME,
    Manifest,
    parse_manifest,
    read_manifest,
    verify,
)
from raymill.checkpoint.retention import (
    Keep,
    committed_steps,
    remove,
    set_aside,
    step_directory_name,
    steps_to_delete,
)
from raymill.durable import write_atomic
from raymill.errors import CheckpointError, ConfigError, StorageError
from raymill.reading import entries, is_file, is_folder, read_bytes, read_text
from raymill.storage.bucket import Bucket
from raymill.storage.mirror import Mirror

HELD_NAME = "held.json"  # here: the token under which this folder was last worked in
_CHECKPOINTS = "checkpoints"
_JOURNAL = "metrics.jsonl"
_FILES = "files"
_FOLDER = re.compile(r"step-\d+-(\d+)\.(\d+)-[0-9a-f]+")
# Where each holder, attempt and process leaves what is of no use to another machine.
_LOCAL = (_CHECKPOINTS, "ray", "pulse", HELD_NAME)
# What is uploaded once it is complete, and not needed to go on.
_RESULTS = ("export", "adapter", "logs")


class RemoteRun:
    """A run at a URI, as workers of this start by the holder of `token` see and change it. Raises StorageError
    throughout, where the store can't be reached."""

    def __init__(self, uri: str, token: int = 0, start: int = 0) -> None:
        self.uri = uri
        self._bucket = Bucket(uri)
        self._ledger = Ledger(self._bucket, token, start)
        self._token = token
        self._start = start
        self._mirror: Mirror | None = None

    def hold(self) -> None:
        """Fence off every writer of before, and delete what they uploaded that isn't real.

        Raises:
            FencedError: the run is another's.
        """
        known = {commit.folder for commit in self._ledger.hold().commits}
        for name in self._bucket.folders(_CHECKPOINTS):
            # Of earlier writers alone, who can commit nothing any more: a newer one's aren't known here.
            if name not in known and _writer_of(name) < (self._token, self._start):
                self._delete(f"{_CHECKPOINTS}/{name}")

    def check(self) -> None:
        """
        Raises:
            FencedError: the run is another's.
        """
        self._ledger.check()

    def upload(self, path: Path, folder: str) -> None:
        """A file of a checkpoint that is being made in `folder`."""
        self._bucket.upload(path, f"{_CHECKPOINTS}/{folder}/{path.name}")

    def discard(self, folder: str) -> None:
        """Delete a checkpoint that didn't become real, once the ledger can't say that it did: an answer that
        was lost may have been a yes.

        Raises:
            FencedError: the run is another's.
        """
        self._remove({folder})

    def publish(self, commit: Commit, run_dir: Path) -> None:
        """Make a checkpoint real whose files are all there, and keep the run's other files with it.

        Raises:
            FencedError: the run is another's.
        """
        self.keep(run_dir)
        self._ledger.add(commit)

    def keep(self, run_dir: Path) -> None:
        """Upload what changed of the run directory, but for results."""
        if self._mirror is None:
            own = Bucket(f"{self.uri}/{_FILES}/{self._token:08d}")
            self._mirror = Mirror(own, run_dir, _is_needed)
        self._mirror.push(last=_JOURNAL)  # so that nothing else tells of lines that it lacks
        for token in self._bucket.folders(_FILES):
            if int(token) < self._token:
                self._delete(f"{_FILES}/{token}")

    def keep_results(self, run_dir: Path, marker: str) -> None:
        """Upload what a finished run leaves. In a folder with a `marker` it is gone until all else is there.

        Raises:
            FencedError: the run is another's.
        """
        self._ledger.check_holder()
        for path in (folder / marker for folder in entries(run_dir)):
            key = path.relative_to(run_dir).as_posix()
            if is_file(path) and self._bucket.get(key) != read_bytes(path):
                self._bucket.delete([key])
        Mirror(self._bucket, run_dir, _is_result).push(last=marker)

    def retain(self, keep: Keep, protected: Collection[Path]) -> None:
        """Delete the checkpoints that may go, which nobody counts on from the moment the ledger says so.

        Raises:
            FencedError: the run is another's.
        """
        commits = self._ledger.state().commits
        names = {path.name for path in protected}
        steps = [commit.step for commit in commits]
        safe = [step for step in steps if step_directory_name(step) in names]
        doomed = steps_to_delete(steps, keep, safe)
        folders = {commit.folder for commit in commits if commit.step in doomed}
        if folders:
            self._remove(folders)

    def steps(self) -> list[int]:
        """The steps of the run's checkpoints, in order.

        Raises:
            CheckpointError: the ledger can't be read.
        """
        return [commit.step for commit in self._ledger.state().commits]

    def pull(self, run_dir: Path, say: Callable[[str], None]) -> None:
        """Have here, as the one who holds the run, what it takes to go on: its newest checkpoint, and its
        files, where another machine wrote them last.

        Raises:
            CheckpointError: the ledger can't be read.
        """
        held = run_dir / HELD_NAME
        # This process's token follows the one that the folder was last worked in: nobody else came between.
        before, now = (f"{self.uri} {token}" for token in (self._token - 1, self._token))
        if not is_file(held) or read_text(held) != before:
            self._pull_files(run_dir)
        write_atomic(held, now)
        self.pull_newest(run_dir, say)

    def pull_newest(self, run_dir: Path, say: Callable[[str], None]) -> None:
        """Have here the newest checkpoint that verifies, with those after it that are damaged, and none that
        the run hasn't."""
        commits = self._ledger.state().commits
        by_step = {commit.step: commit for commit in commits}
        for step, directory in committed_steps(run_dir / _CHECKPOINTS):
            if step in by_step:
                continue
            if commits and step <= commits[-1].step:  # the store let it go
                remove(directory)
            else:
                say(f"{directory} isn't in {self.uri}: set aside as {set_aside(directory).name}")
        for commit in reversed(commits):
            if self._fetch(commit, run_dir / _CHECKPOINTS, say):
                return

    def pull_step(self, run_dir: Path, step: int, say: Callable[[str], None]) -> None:
        """Have one checkpoint here.

        Raises:
            ConfigError: the run hasn't it; says which it has.
        """
        commits = {commit.step: commit for commit in self._ledger.state().commits}
        if step not in commits:
            known = ", ".join(map(str, commits)) or "none"
            raise ConfigError(
                [
                    f"run.from={run_dir.name}@{step}: {self.uri} has no step {step} (available: {known})"
                ]
            )
        self._fetch(commits[step], run_dir / _CHECKPOINTS, say)

    def _fetch(self, commit: Commit, checkpoints: Path, say: Callable[[str], None]) -> bool:
        """Whether the checkpoint is here now, and whole; a damaged one is here as it is, to be told of."""
        target = checkpoints / step_directory_name(commit.step)
        if is_folder(target):
            if _is_whole(target, commit):
                return True
            remove(target)
        say(f"fetching the checkpoint of step {commit.step} from {self.uri}")
        temporary = checkpoints / f"{target.name}.{uuid.uuid4().hex[:8]}.deleted"
        temporary.mkdir(parents=True)
        bucket = Bucket(f"{self.uri}/{_CHECKPOINTS}/{commit.folder}")
        try:
            Mirror(bucket, temporary).pull(last=MANIFEST_NAME)
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return _is_whole(target, commit)

    def verified(self) -> tuple[list[Manifest], list[str]]:
        """Every checkpoint's manifest, oldest first, and what is wrong with those that don't verify; all their
        bytes are read where they are."""
        manifests, problems = [], []
        for commit in self._ledger.state().commits:
            try:
                manifests.append(self._verified(commit))
            except (CheckpointError, StorageError) as error:
                if commit not in self._ledger.state().commits:
                    continue  # the run goes on meanwhile and has deleted it
                if isinstance(error, StorageError):
                    raise
                problems.append(str(error))
        return manifests, problems

    def _verified(self, commit: Commit) -> Manifest:
        place = f"{_CHECKPOINTS}/{commit.folder}"
        data = self._bucket.get(f"{place}/{MANIFEST_NAME}")
        if data is None:
            raise CheckpointError(f"{self.uri}/{place} has no {MANIFEST_NAME}")
        manifest = parse_manifest(data.decode(errors="replace"), f"{self.uri}/{place}")
        if manifest.digest != commit.digest:
            raise CheckpointError(f"{self.uri}/{place} isn't the checkpoint that was committed")
        there = self._bucket.sizes(place)
        for name, record in manifest.files.items():
            key = f"{place}/{name}"
            if key not in there:
                raise CheckpointError(f"{self.uri}/{key} is missing")
            if self._bucket.sha256(key) != (record.bytes, record.sha256):
                raise CheckpointError(f"{self.uri}/{key} is damaged: its manifest says otherwise")
        return manifest

    def files(self, folder: Path) -> None:
        """Have the run's files here, to look at.

        Raises:
            ConfigError: there is no such run; says which there are.
        """
        if not self._pull_files(folder):
            root, _, name = self.uri.rpartition("/")
            if self._bucket.sizes("lease"):
                raise ConfigError([f"run.name={name}: this run has committed nothing yet"])
            there = Bucket(root).folders()
            raise ConfigError(
                [f"run.name={name}: {root} has no such run; there is: {', '.join(there) or 'none'}"]
            )

    def _pull_files(self, folder: Path) -> bool:
        """Whether any holder has kept the run's files, which are here now."""
        names = (key.split("/") for key in self._bucket.sizes(_FILES))
        tokens = [name[1] for name in names if name[2:] == [_JOURNAL]]
        if tokens:
            Mirror(Bucket(f"{self.uri}/{_FILES}/{max(tokens)}"), folder).pull()
        return bool(tokens)

    def _remove(self, folders: set[str]) -> None:
        """Delete checkpoints, after the ledger says that they are none."""
        self._ledger.remove(folders)
        for folder in folders:
            self._delete(f"{_CHECKPOINTS}/{folder}")

    def _delete(self, folder: str) -> None:
        """Delete a folder, its manifest first."""
        keys = self._bucket.sizes(folder)
        self._bucket.delete(sorted(keys, key=lambda key: not key.endswith(MANIFEST_NAME)))


def _writer_of(folder: str) -> tuple[int, int]:
    """Token and start of who made a checkpoint's folder; of another folder one that nobody is above."""
    match = _FOLDER.fullmatch(folder)
    return (int(match[1]), int(match[2])) if match else (sys.maxsize, 0)


def _is_whole(directory: Path, commit: Commit) -> bool:
    with suppress(CheckpointError):
        return read_manifest(directory).digest == commit.digest and bool(verify(directory))
    return False


def _is_needed(name: str) -> bool:
    """Of a file of the run directory: whether it takes it to go on elsewhere."""
    first = name.split("/")[0]
    return first not in (*_LOCAL, *_RESULTS) and not first.startswith(("stop-requested", "."))


def _is_result(name: str) -> bool:
    return name.split("/")[0] in _RESULTS
