"""Mirror folders of this machine in an object store."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from raymill.durable import sha256_file, write_atomic
from raymill.errors import StorageError
from raymill.progress_line import ProgressLine
from raymill.reading import MISSING, files_below, is_file, read_bytes, status
from raymill.schema.storage import StorageConfig
from raymill.storage.bucket import Bucket

T = TypeVar("T")
# Files that are transferred at once.
_TRANSFERS = 8
_PLAIN_EVERY_S = 10.0


class Mirror:
    """Folder and its copy in a bucket. `wanted` selects the relative paths that are copied."""

    def __init__(
        self, bucket: Bucket, folder: Path, wanted: Callable[[str], bool] = lambda _: True
    ) -> None:
        self._bucket = bucket
        self._folder = folder
        self._wanted = wanted
        self._pushed: dict[str, tuple[int, int]] = {}

    def push(self, last: str = "") -> None:
        """Upload what changed since this object's last push; `last` is uploaded after everything
        else."""
        paths = list(self._files())
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            # Whoever sees the last file finds all others in place.
            _run_all(pool, self._upload, [path for path in paths if path.name != last])
        for path in paths:
            if path.name == last:
                self._upload(path)

    def pull(self, last: str = "") -> None:
        """Download everything and overwrite local files; `last` is downloaded after everything
        else."""
        sizes = {name: size for name, size in self._bucket.sizes().items() if self._wanted(name)}
        with ProgressLine(_PLAIN_EVERY_S, patient=True) as line:
            received = _ReceivedBytes(sum(sizes.values()), line)

            def download(name: str) -> None:
                path = self._folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self._bucket.download(name, path, received.add)

            with ThreadPoolExecutor(_TRANSFERS) as pool:
                try:
                    _run_all(pool, download, [name for name in sizes if name != last])
                except BaseException:
                    # Transfers in progress end at their next piece.
                    received.canceled = True
                    raise
            if last in sizes:
                download(last)

    def _files(self) -> Iterator[Path]:
        """Yield the files to copy; unwanted folders, whose contents change at any time, aren't
        read."""

        def wanted(path: Path) -> bool:
            return self._wanted(path.relative_to(self._folder).as_posix())

        for path in files_below(self._folder, wanted):
            if ".tmp-" not in path.name and wanted(path):
                yield path

    def _upload(self, path: Path) -> None:
        name = path.relative_to(self._folder).as_posix()
        try:
            file = status(path)
            state = None if file is None else (file.st_size, file.st_mtime_ns)
            if state is not None and self._pushed.get(name) != state:
                self._bucket.upload(path, name)
                self._pushed[name] = state
        except (FileNotFoundError, StorageError):
            # A file that somebody has deleted meanwhile need not be uploaded.
            if is_file(path):
                raise


class _ReceivedBytes:
    """Number of bytes that several threads have received, shown as progress."""

    def __init__(self, expected: int, line: ProgressLine) -> None:
        self._expected = expected
        self._line = line
        self._received = 0
        self._lock = threading.Lock()
        self.canceled = False

    def add(self, size: int) -> None:
        if self.canceled:
            raise StorageError("another transfer failed")
        with self._lock:
            self._received += size
            self._line.show(
                f"downloaded {self._received / 1e6:,.0f} of {self._expected / 1e6:,.0f} MB"
            )


def _run_all(pool: Executor, work: Callable[[T], None], items: Sequence[T]) -> None:
    """Run all items, a few at once; the first failure cancels the others."""
    try:
        # Failures show as they happen, not in the order of the items.
        for done in as_completed([pool.submit(work, item) for item in items]):
            done.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def download_folder(storage: StorageConfig, folder: Path, marker: str) -> None:
    """Download a finished folder from the object store, if there is one.

    `marker` is the file whose presence shows that the folder is finished.
    """
    bucket = _bucket_of(storage, folder)
    if bucket is None or is_file(folder / marker) or bucket.get(marker) is None:
        return
    print(f"downloading {bucket.uri} → {folder}", flush=True)
    Mirror(bucket, folder, _visible).pull(last=marker)


def upload_folder(storage: StorageConfig, folder: Path, marker: str) -> None:
    """Upload a finished folder to the object store, if there is one.

    Raises:
        StorageError: the store has another folder of this name.
    """
    bucket = _bucket_of(storage, folder)
    if bucket is None:
        return
    stored = bucket.get(marker)
    if stored == read_bytes(folder / marker):
        return
    if stored is not None:
        raise StorageError(
            f"{bucket.uri} holds another {marker} than {folder}: two machines prepared different data from the "
            "same settings. Delete the local folder to use the one in the store, or choose another data.name"
        )
    print(f"uploading {folder} → {bucket.uri}", flush=True)
    Mirror(bucket, folder, _visible).push(last=marker)


_VERSION_NAME = "version.json"


def pull_newest(storage: StorageConfig, folder: Path, name: str) -> None:
    """Download a folder from the object store, if there is one and its copy is newer.

    `name` is the file by which a local change is detected. Writers take turns.

    Raises:
        StorageError: the folder and its copy were both changed since they were equal.
    """
    bucket = _bucket_of(storage, folder)
    stored = None if bucket is None else bucket.get(_VERSION_NAME)
    if bucket is None or stored is None or stored == _version(folder):
        return
    if _is_changed(folder, name):
        raise StorageError(
            f"{folder} and {bucket.uri} were both changed since they were equal, on two machines. Move the "
            "folder away to continue with the copy in the store, or choose another name="
        )
    print(f"downloading {bucket.uri} → {folder}", flush=True)
    Mirror(bucket, folder, _visible).pull(last=_VERSION_NAME)


def push_newest(storage: StorageConfig, folder: Path, name: str) -> None:
    """Upload a folder that was changed here to the object store, if there is one."""
    bucket = _bucket_of(storage, folder)
    if bucket is None or not _is_changed(folder, name):
        return
    version = {"id": uuid.uuid4().hex, "sha256": sha256_file(folder / name)}
    # The version is uploaded last, so that it never names a half-uploaded folder.
    write_atomic(folder / _VERSION_NAME, json.dumps(version))
    Mirror(bucket, folder, _visible).push(last=_VERSION_NAME)


def _version(folder: Path) -> bytes | None:
    try:
        return read_bytes(folder / _VERSION_NAME)
    except MISSING:
        return None


def _is_changed(folder: Path, name: str) -> bool:
    """Return whether a file has changed since the folder and its copy were equal.

    For a database, changes that a killed process left in its write-ahead log count too.
    """
    if not is_file(folder / name):
        return False
    write_ahead_log = status(folder / f"{name}-wal")
    if write_ahead_log is not None and write_ahead_log.st_size:
        return True
    known = _version(folder)
    return known is None or json.loads(known)["sha256"] != sha256_file(folder / name)


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _bucket_of(storage: StorageConfig, folder: Path) -> Bucket | None:
    """Return the bucket of a folder; None where there is no object store, or the folder lies
    elsewhere."""
    # A folder outside of the storage folder has no place in the store.
    if storage.uri is None or not folder.is_relative_to(storage.folder):
        return None
    return Bucket(f"{storage.uri}/{folder.relative_to(storage.folder).as_posix()}")
