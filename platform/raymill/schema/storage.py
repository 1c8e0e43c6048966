"""Where everything that a job writes lies: a folder, or an object store with a folder to work in."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from raymill.reading import user_path
from raymill.redaction import holds_secrets, redacted_value

SCHEMES = ("s3", "gs", "az")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


@dataclass(frozen=True)
class StorageConfig:
    """Everything a job writes lies under this root: data/, runs/, mlflow.db."""

    root: str  # a folder, or s3://bucket/path, gs://bucket/path, az://container/path
    # For an object store: the folder that work is done in, whose loss costs nothing. Workers on several
    # nodes share it. None: below ~/.cache/raymill, named after the root.
    scratch: str | None = None

    @property
    def uri(self) -> str | None:
        """The object store; None where the root is a folder."""
        return self.root if is_uri(self.root) else None

    @property
    def folder(self) -> Path:
        """Where files are read and written on this machine."""
        return Path(self.root if self.uri is None else str(self.scratch))


def is_uri(place: str) -> bool:
    """Whether a place is an object store's and not the file system's."""
    return _URI.match(place) is not None


def store_problems(key: str, uri: str) -> list[str]:
    """Refuse secrets in an object store's address: the store's clients take nothing of it, and it's repeated
    wherever the run is named."""
    if not holds_secrets(uri):
        return []
    return [
        f"{key}={redacted_value(uri)}: leave out keys, passwords and queries; credentials come from the "
        "environment (AWS_ACCESS_KEY_ID, AZURE_STORAGE_SAS_TOKEN, GOOGLE_APPLICATION_CREDENTIALS, …)"
    ]


def path_problems(key: str, path: str) -> list[str]:
    """Refuse what can't be a path: nothing at all, line breaks and other control characters, and bytes that
    aren't UTF-8, which reach Python as halves of surrogate pairs."""
    if not path:
        return [f"{key}: give a folder; the one you are in is {key}=."]
    if any(ord(one) < 32 or ord(one) == 127 or 0xD800 <= ord(one) < 0xE000 for one in path):
        return [
            f"{key}={path!r}: has a line break, another control character or bytes that aren't UTF-8; rename "
            "the folder, or link it by another name"
        ]
    return []


def root_problems(storage: StorageConfig) -> list[str]:
    """Say why the folder can't be written to, or made where there is none. Nothing is made."""
    key = "storage.root" if storage.uri is None else "storage.scratch"
    there = storage.folder
    try:
        while not (found := _status(there)):
            there = there.parent
    except OSError as error:  # a name that is too long, a folder that isn't shown
        return [f"{key}={storage.folder}: {error.strerror}; give another folder"]
    if not stat.S_ISDIR(found.st_mode):
        return [f"{key}={storage.folder}: {there} is a file, not a folder; give another folder"]
    if os.access(there, os.W_OK | os.X_OK):
        return []
    read_only = os.statvfs(there).f_flag & os.ST_RDONLY
    reason = "it is on a read-only file system" if read_only else "you have no permission for it"
    return [f"{key}={storage.folder}: {there} can't be written to: {reason}; give another folder"]


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def sqlite_address(path: Path) -> str:
    """Return a database file's address, as SQLAlchemy 2.1 and MLflow take it.

    SQLAlchemy reads `?` as the beginning of options, and decodes `%20`. MLflow makes the folder that
    stands in an address that begins with `sqlite:///`, undecoded.
    """
    plain = str(path)
    quoted = plain.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{plain}" if quoted == plain else f"sqlite+pysqlite:///{quoted}"


def placed(storage: StorageConfig, joins: bool, problems: list[str]) -> StorageConfig:
    """The same with absolute folders; `joins`: whether the job runs on a cluster that is there already."""
    match = _URI.match(storage.root)
    if match is None:
        if storage.scratch is not None:
            problems.append(
                f"storage.scratch={storage.scratch}: storage.root={storage.root} is a folder itself; work is "
                "done in it"
            )
        return StorageConfig(_absolute("storage.root", storage.root, problems))
    if refused := store_problems("storage.root", storage.root):
        problems += refused
        return storage
    scheme, path = match[1].lower(), match[2].strip("/")
    if path:
        problems += path_problems("storage.root", path)
    if scheme not in SCHEMES or {"", ".", ".."}.intersection(path.split("/")):
        problems.append(
            f"storage.root={storage.root}: expected a folder, s3://bucket/path, gs://bucket/path or "
            "az://container/path"
        )
    uri = f"{scheme}://{path}"
    if storage.scratch is not None:
        return StorageConfig(uri, _absolute("storage.scratch", storage.scratch, problems))
    if joins:
        problems.append(
            f"storage.scratch: with storage.root={uri} on a cluster, name a folder to work in that all of "
            "its nodes share"
        )
    name = f"{path.rpartition('/')[2]}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
    return StorageConfig(uri, str(Path.home() / ".cache" / "raymill" / name))


def _absolute(key: str, folder: str, problems: list[str]) -> str:
    if found := path_problems(key, folder):
        problems += found
        return folder
    path = user_path(folder)
    if not path.is_absolute() and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        problems.append(
            f"{key}={folder!r}: inside a submitted job a relative path would vanish "
            "with the job's working directory; give an absolute path that all nodes share"
        )
    try:
        return str(path.resolve())
    except (OSError, RuntimeError) as error:
        problems.append(f"{key}={folder}: its links lead nowhere ({error}); give another folder")
        return folder
