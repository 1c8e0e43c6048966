"""Folder of a corpus, and its copy in an object store where there is one.

Every unit's files are uploaded when they are finished, and downloaded where they are needed: stages run on
many machines, which share no disk, and none of them has space for the whole corpus.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from raymill import reading
from raymill.durable import JsonObject, canonical_json, sha256_file, write_atomic
from raymill.errors import DataError
from raymill.reading import MISSING, read_text, status
from raymill.schema.storage import StorageConfig
from raymill.storage.bucket import Bucket


@dataclass(frozen=True)
class StoredFile:
    """File of a corpus, by its path in the folder, its size and its digest."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class CorpusStore:
    """Folder on this machine, and the URI of its copy (None: the folder is all there is)."""

    folder: str
    uri: str | None

    @classmethod
    def of(cls, storage: StorageConfig, folder: Path) -> CorpusStore:
        """Return the store of a folder below the storage root."""
        inside = folder.is_relative_to(storage.folder)
        if storage.uri is None or not inside:
            return cls(str(folder), None)
        return cls(str(folder), f"{storage.uri}/{folder.relative_to(storage.folder).as_posix()}")

    def path(self, name: str) -> Path:
        """Return the place of a file on this machine, whether or not it is there."""
        return Path(self.folder) / name

    def local(self, file: StoredFile) -> Path:
        """Return a file's place on this machine, where it is downloaded to if need be.

        Raises:
            DataError: the file is missing, or isn't the one that was stored.
            StorageError: the store can't be read.
        """
        path = self.path(file.path)
        if not self._is_here(file):
            if self.uri is None:
                raise DataError(f"{path} is missing or cut short; prepare the corpus again.")
            path.parent.mkdir(parents=True, exist_ok=True)
            _bucket(self.uri).download(file.path, path)
            if (actual := sha256_file(path)) != file.sha256:
                path.unlink()
                raise DataError(
                    f"{self.uri}/{file.path}: expected sha256 {file.sha256[:12]}, found "
                    f"{actual[:12]}; delete it and prepare the corpus again."
                )
        return path

    def read_range(self, file: StoredFile, offset: int, buffer: memoryview) -> int:
        """Fill the buffer with a file's bytes from an offset on; return how many there were.

        A file that isn't on this machine isn't downloaded for it. Raises as `local` does.
        """
        if self.uri is not None and not self._is_here(file):
            return _bucket(self.uri).read_range(file.path, offset, buffer)
        return reading.read_range(self.local(file), offset, buffer)

    def has(self, files: Sequence[StoredFile]) -> bool:
        """Return whether files are on this machine or, of those that aren't, some copy exists."""
        # Files are uploaded before whatever names them, and nothing deletes one alone.
        return self.uri is not None or all(map(self._is_here, files))

    def _is_here(self, file: StoredFile) -> bool:
        state = status(self.path(file.path))
        return state is not None and state.st_size == file.bytes

    def read_json(self, name: str) -> JsonObject | None:
        """Return the JSON object of a file here, or else of its copy; None where there is none that can be
        read."""
        try:
            text = read_text(self.path(name))
        except MISSING:
            content = None if self.uri is None else _bucket(self.uri).get(name)
            if content is None:
                return None
            text = content.decode(errors="replace")
        try:
            tree = json.loads(text)
        except ValueError:
            return None
        return tree if isinstance(tree, dict) else None

    def write_json(self, name: str, tree: JsonObject) -> None:
        """Write a JSON object, and its copy."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, canonical_json(tree) + "\n")
        self.upload(name)

    def upload(self, name: str) -> None:
        """Copy a file to the object store, if there is one."""
        if self.uri is not None:
            _bucket(self.uri).upload(self.path(name), name)


@cache
def _bucket(uri: str) -> Bucket:
    return Bucket(uri)
