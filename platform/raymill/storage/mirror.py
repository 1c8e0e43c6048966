"""Folders that are worked on here and kept in an object store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raymill.config.storage import StorageConfig
from raymill.errors import StorageError
from raymill.storage.bucket import Bucket


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
        for path in sorted(self._folder.rglob("*"), key=lambda path: path.name == last):
            name = path.relative_to(self._folder).as_posix()
            try:
                if not self._wanted(name) or ".tmp-" in path.name or not path.is_file():
                    continue
                stat = path.stat()
                state = stat.st_size, stat.st_mtime_ns
                if self._pushed.get(name) != state:
                    self._bucket.upload(path, name)
                    self._pushed[name] = state
            except (FileNotFoundError, StorageError):
                if path.exists():
                    raise
                # Somebody deleted it meanwhile: then it needn't be kept.

    def pull(self, last: str = "") -> None:
        """Download everything, over what is there; `last` after everything else."""
        names = [name for name in self._bucket.sizes() if self._wanted(name)]
        for name in sorted(names, key=lambda name: name == last):
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._bucket.download(name, path)


def fetch(storage: StorageConfig, folder: Path, marker: str) -> None:
    """Have a finished folder here that is in the object store, if there is one; `marker` is the file whose
    presence says that it is finished."""
    bucket = _bucket_of(storage, folder)
    if bucket is None or (folder / marker).exists() or bucket.get(marker) is None:
        return
    print(f"fetching {bucket.uri} → {folder}", flush=True)
    Mirror(bucket, folder, _visible).pull(last=marker)


def keep(storage: StorageConfig, folder: Path, marker: str) -> None:
    """Have a finished folder in the object store, if there is one."""
    bucket = _bucket_of(storage, folder)
    if bucket is None or bucket.get(marker) == (folder / marker).read_bytes():
        return
    print(f"uploading {folder} → {bucket.uri}", flush=True)
    Mirror(bucket, folder, _visible).push(last=marker)


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _bucket_of(storage: StorageConfig, folder: Path) -> Bucket | None:
    """None where there is no object store, or the folder lies elsewhere."""
    if storage.uri is None or not folder.is_relative_to(storage.folder):
        return None
    return Bucket(f"{storage.uri}/{folder.relative_to(storage.folder).as_posix()}")
