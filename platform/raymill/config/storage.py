"""Where everything that a job writes lies: a folder, or an object store with a folder to work in."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

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
    if scheme not in SCHEMES or not path:
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
    path = Path(folder).expanduser()
    if not path.is_absolute() and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        problems.append(
            f"{key}={folder!r}: inside a submitted job a relative path would vanish "
            "with the job's working directory; give an absolute path that all nodes share"
        )
    return str(path.resolve())
