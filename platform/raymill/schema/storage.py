"""Storage of everything that a job writes: a folder, or an object store with a folder to work in."""

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
    """Root of everything that a job writes (data/, runs/, mlflow.db): a folder, or s3://bucket/path,
    gs://bucket/path, az://container/path.

    An object store has a scratch folder, whose loss costs nothing; workers on several nodes share it.
    """

    root: str
    scratch: str | None

    @property
    def uri(self) -> str | None:
        """Address of the object store; None where the root is a folder."""
        return self.root if is_uri(self.root) else None

    @property
    def folder(self) -> Path:
        """Folder in which files are read and written on this machine."""
        return Path(self.root if self.uri is None else str(self.scratch))


def is_uri(location: str) -> bool:
    """Tell an address in an object store from a path of the file system."""
    return _URI.match(location) is not None


def store_problems(key: str, uri: str) -> list[str]:
    """Refuse secrets in an object store's address: its clients don't read them there, and the address is shown
    wherever the run is named."""
    if not holds_secrets(uri):
        return []
    return [
        f"{key}={redacted_value(uri)}: leave out keys, passwords and queries; credentials come from the "
        "environment (AWS_ACCESS_KEY_ID, AZURE_STORAGE_SAS_TOKEN, GOOGLE_APPLICATION_CREDENTIALS, …)"
    ]


def path_problems(key: str, path: str) -> list[str]:
    """Refuse text that can't be a path: the empty text, line breaks and other control characters, and bytes
    that aren't UTF-8, which reach Python as halves of surrogate pairs."""
    if not path:
        return [f"{key}: give a folder; the one you are in is {key}=."]
    if any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) < 0xE000 for char in path):
        return [
            f"{key}={path!r}: has a line break, another control character or bytes that aren't UTF-8; rename "
            "the folder, or link it by another name"
        ]
    return []


def input_problems(key: str, path: str) -> list[str]:
    """Refuse what can't be the place of inputs: what `path_problems` refuses, and addresses of unknown stores
    or with secrets."""
    problems = path_problems(key, path)
    if match := _URI.match(path):
        problems += store_problems(key, path)
        if match[1] not in SCHEMES or not match[2].strip("/"):
            problems.append(
                f"{key}={redacted_value(path)}: expected files, folders and globs, or s3://bucket/path, "
                "gs://bucket/path, az://container/path"
            )
    return problems


def root_problems(storage: StorageConfig) -> list[str]:
    """Refuse a folder that can't be written to, or that can't be created; create nothing."""
    key = "storage.root" if storage.uri is None else "storage.scratch"
    parent = storage.folder
    try:
        while not (status := _status(parent)):
            parent = parent.parent
    except OSError as error:
        return [f"{key}={storage.folder}: {error.strerror}; give another folder"]
    if not stat.S_ISDIR(status.st_mode):
        return [f"{key}={storage.folder}: {parent} is a file, not a folder; give another folder"]
    if os.access(parent, os.W_OK | os.X_OK):
        return []
    # On a read-only file system, a change of permissions would be the wrong advice.
    read_only = os.statvfs(parent).f_flag & os.ST_RDONLY
    reason = "it is on a read-only file system" if read_only else "you have no permission for it"
    return [f"{key}={storage.folder}: {parent} can't be written to: {reason}; give another folder"]


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def sqlite_address(path: Path) -> str:
    """Return a database file's address in the form that SQLAlchemy 2.1 and MLflow take.

    SQLAlchemy reads `?` as the start of options, and decodes `%20`. MLflow creates the folder in an address
    that begins with `sqlite:///`, undecoded.
    """
    plain = str(path)
    quoted = plain.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{plain}" if quoted == plain else f"sqlite+pysqlite:///{quoted}"


def placed(storage: StorageConfig, joins: bool, problems: list[str]) -> StorageConfig:
    """Return the storage with absolute folders; `joins` tells that the job joins a running cluster."""
    match = _URI.match(storage.root)
    if match is None:
        if storage.scratch is not None:
            problems.append(
                f"storage.scratch={storage.scratch}: storage.root={storage.root} is a folder itself; work is "
                "done in it"
            )
        return StorageConfig(_absolute("storage.root", storage.root, problems), None)
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
    # Two buckets may have folders of one name, which must not share a scratch folder.
    name = f"{path.rpartition('/')[2]}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
    return StorageConfig(uri, str(Path.home() / ".cache" / "raymill" / name))


def _absolute(key: str, folder: str, problems: list[str]) -> str:
    if refused := path_problems(key, folder):
        problems += refused
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
