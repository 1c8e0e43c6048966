"""Folders that are worked on here and kept in an object store."""

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
_AT_ONCE = 8  # transfers
_PLAIN_EVERY_S = 10.0


class Mirror:
    """A folder and its copy in a bucket. `wanted` says of a relative path whether it is copied."""

    def __init__(
        self, bucket: Bucket, folder: Path, wanted: Callable[[str], bool] = lambda _: True
    ) -> None:
        self._bucket = bucket
        self._folder = folder
        self._wanted = wanted
        self._pushed: dict[str, tuple[int, int]] = {}

    def push(self, last: str = "") -> None:
        """Upload what changed since this object's last push; `last` is uploaded after everything else."""
        paths = list(self._kept())
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            _all_of(pool, self._upload, [path for path in paths if path.name != last])
        for path in paths:
            if path.name == last:
                self._upload(path)

    def pull(self, last: str = "") -> None:
        """Download everything, over what is there; `last` after everything else."""
        sizes = {name: size for name, size in self._bucket.sizes().items() if self._wanted(name)}
        with ProgressLine(_PLAIN_EVERY_S, patient=True) as line:
            got = _Sum(sum(sizes.values()), line)

            def download(name: str) -> None:
                path = self._folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self._bucket.download(name, path, got.add)

            with ThreadPoolExecutor(_AT_ONCE) as pool:
                try:
                    _all_of(pool, download, [name for name in sizes if name != last])
                except BaseException:
                    got.unwanted = True  # what is under way ends with its next piece
                    raise
            if last in sizes:
                download(last)

    def _kept(self) -> Iterator[Path]:
        """Files to copy. Folders that aren't wanted, where others come and go, aren't looked into."""

        def wanted(path: Path) -> bool:
            return self._wanted(path.relative_to(self._folder).as_posix())

        for path in files_below(self._folder, wanted):
            if ".tmp-" not in path.name and wanted(path):
                yield path

    def _upload(self, path: Path) -> None:
        name = path.relative_to(self._folder).as_posix()
        try:
            found = status(path)
            state = None if found is None else (found.st_size, found.st_mtime_ns)
            if state is not None and self._pushed.get(name) != state:
                self._bucket.upload(path, name)
                self._pushed[name] = state
        except (FileNotFoundError, StorageError):
            if is_file(path):  # or else somebody deleted it meanwhile, and it needn't be kept
                raise


class _Sum:
    """Bytes that several threads have got."""

    def __init__(self, expected: int, line: ProgressLine) -> None:
        self._expected = expected
        self._line = line
        self._got = 0
        self._lock = threading.Lock()
        self.unwanted = False

    def add(self, size: int) -> None:
        if self.unwanted:
            raise StorageError("the others ended")
        with self._lock:
            self._got += size
            self._line.show(f"fetched {self._got / 1e6:,.0f} of {self._expected / 1e6:,.0f} MB")


def _all_of(pool: Executor, work: Callable[[T], None], items: Sequence[T]) -> None:
    """Every one, a few at once; the first that fails ends the rest."""
    try:
        for done in as_completed([pool.submit(work, item) for item in items]):
            done.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def fetch(storage: StorageConfig, folder: Path, marker: str) -> None:
    """Have a finished folder here that is in the object store, if there is one; `marker` is the file whose
    presence says that it is finished."""
    bucket = _bucket_of(storage, folder)
    if bucket is None or is_file(folder / marker) or bucket.get(marker) is None:
        return
    print(f"fetching {bucket.uri} → {folder}", flush=True)
    Mirror(bucket, folder, _visible).pull(last=marker)


def keep(storage: StorageConfig, folder: Path, marker: str) -> None:
    """Have a finished folder in the object store, if there is one.

    Raises:
        StorageError: the store has another of this name.
    """
    bucket = _bucket_of(storage, folder)
    if bucket is None:
        return
    there = bucket.get(marker)
    if there == read_bytes(folder / marker):
        return
    if there is not None:
        raise StorageError(
            f"{bucket.uri} holds another {marker} than {folder}: two machines made different data from the "
            "same settings. Delete the folder here to use that one, or give data.name another value"
        )
    print(f"uploading {folder} → {bucket.uri}", flush=True)
    Mirror(bucket, folder, _visible).push(last=marker)


_VERSION_NAME = "version.json"


def take_newest(storage: StorageConfig, folder: Path, name: str) -> None:
    """Have a folder here as the object store has it, if there is one and it is newer; `name` is the file in it
    that tells whether it was changed here. Its writers take turns.

    Raises:
        StorageError: both were changed since they were the same.
    """
    bucket = _bucket_of(storage, folder)
    there = None if bucket is None else bucket.get(_VERSION_NAME)
    if bucket is None or there is None or there == _version(folder):
        return
    if _is_changed(folder, name):
        raise StorageError(
            f"{folder} and {bucket.uri} were both changed since they were the same, on two machines. Move the "
            "folder away to go on with what is in the store, or choose another name="
        )
    print(f"fetching {bucket.uri} → {folder}", flush=True)
    Mirror(bucket, folder, _visible).pull(last=_VERSION_NAME)


def push_newest(storage: StorageConfig, folder: Path, name: str) -> None:
    """Have a folder in the object store, if there is one, as it is here, where it was changed."""
    bucket = _bucket_of(storage, folder)
    if bucket is None or not _is_changed(folder, name):
        return
    facts = {"id": uuid.uuid4().hex, "sha256": sha256_file(folder / name)}
    write_atomic(folder / _VERSION_NAME, json.dumps(facts))
    Mirror(bucket, folder, _visible).push(last=_VERSION_NAME)


def _version(folder: Path) -> bytes | None:
    try:
        return read_bytes(folder / _VERSION_NAME)
    except MISSING:
        return None


def _is_changed(folder: Path, name: str) -> bool:
    """Whether a file is another than when its folder and the store's were the same; of a database, what a
    process that was killed left beside it counts."""
    if not is_file(folder / name):
        return False
    beside = status(folder / f"{name}-wal")
    if beside is not None and beside.st_size:
        return True
    known = _version(folder)
    return known is None or json.loads(known)["sha256"] != sha256_file(folder / name)


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _bucket_of(storage: StorageConfig, folder: Path) -> Bucket | None:
    """None where there is no object store, or the folder lies elsewhere."""
    if storage.uri is None or not folder.is_relative_to(storage.folder):
        return None
    return Bucket(f"{storage.uri}/{folder.relative_to(storage.folder).as_posix()}")
