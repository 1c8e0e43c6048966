"""The one door to object stores: what lies under a URI, in whole objects."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from raymill.durable import replaced, sha256_json
from raymill.errors import StorageError
from raymill.reading import read_bytes, retried

_PIECE_BYTES = 64 * 2**20
_SMALL_BYTES = 32 * 2**20
_ENDPOINTS = ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")
_METADATA_SERVER = "169.254.169.254"  # where machines of a cloud ask for theirs
_RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=600)}


class Bucket:
    """Objects under a URI such as `s3://bucket/path`; keys are relative to it.

    Credentials, region and endpoint come from the environment or the machine, as the store's own tools take
    them: AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME and their like.
    Every method raises StorageError where the store doesn't do what is asked.
    """

    def __init__(self, uri: str) -> None:
        from obstore.store import from_url

        self.uri = uri.rstrip("/")
        # For a whole answer, which is a piece at most.
        client: Any = {"connect_timeout": "10s", "timeout": "120s"}
        if any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS):
            client["allow_http"] = True  # who names such an endpoint means it
        with self._told("opening"):
            options: Any = {"client_options": client, "retry_config": _RETRIES}
            # As it is typed: `a%20b` isn't `a b`, and nothing ends at a `#`.
            scheme, slashes, place = self.uri.partition("://")
            self._store: Any = from_url(f"{scheme}{slashes}{quote(place)}", **options)

    def get(self, key: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        import obstore

        with self._told(f"reading {key}"):
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def put(self, key: str, data: bytes) -> None:
        """Write an object, in the place of the one that may be there."""
        import obstore

        with self._told(f"writing {key}"):
            obstore.put(self._store, key, data)

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object where there is none, whoever else wants to at once; False where there is one, which
        may be this very one: a request whose answer was lost is sent again."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._told(f"writing {key}"):
            try:
                obstore.put(self._store, key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def upload(self, path: Path, key: str) -> None:
        """Write a file's bytes, in parts where it is large."""
        import obstore

        with self._told(f"uploading {path} to {key}"):
            # Whoever appends to a small file meanwhile disturbs nothing.
            small = retried(path, path.stat).st_size <= _SMALL_BYTES
            obstore.put(self._store, key, read_bytes(path) if small else path)

    def download(self, key: str, path: Path, got: Callable[[int], None] = lambda _: None) -> None:
        """Write an object's bytes to a file, whole or not at all; `got` hears of them as they come."""
        with replaced(path) as temporary, temporary.open("wb") as stream:
            for chunk in self._chunks(key):
                stream.write(chunk)
                got(len(chunk))

    def sha256(self, key: str) -> tuple[int, str]:
        """An object's size and digest, by its bytes."""
        digest, size = hashlib.sha256(), 0
        for chunk in self._chunks(key):
            digest.update(chunk)
            size += len(chunk)
        return size, digest.hexdigest()

    def sizes(self, prefix: str = "", after: str | None = None) -> dict[str, int]:
        """Key → bytes of everything under a prefix, which ends where a name does; of keys `after` one."""
        return {str(entry["path"]): int(entry["size"]) for entry in self._listed(prefix, after)}

    def folders(self, prefix: str = "") -> list[str]:
        """Names of what lies right under a prefix and holds more."""
        import obstore

        with self._told(f"listing {prefix}"):
            found = obstore.list_with_delimiter(self._store, prefix or None)["common_prefixes"]
        return sorted(path.rpartition("/")[2] for path in found)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; one that isn't there is fine."""
        import obstore

        with self._told("deleting"):
            for key in keys:
                try:
                    obstore.delete(self._store, key)
                except FileNotFoundError:
                    continue

    def fingerprint(self) -> str:
        """Of all that lies here: it changes whenever an object does."""
        found = ([str(o["path"]), int(o["size"]), str(o["e_tag"])] for o in self._listed())
        return sha256_json(sorted(found))

    def _listed(self, prefix: str = "", after: str | None = None) -> Sequence[Any]:
        import obstore

        with self._told(f"listing {prefix}"):
            return obstore.list(self._store, prefix or None, offset=after).collect()

    def _chunks(self, key: str) -> Iterator[bytes]:
        """An object's bytes in pieces, each of which is tried again by itself; all of one version."""
        import obstore

        with self._told(f"reading {key}"):
            there = obstore.head(self._store, key)
            size, options = int(there["size"]), {}
            if there["e_tag"] is not None:
                options = {"if_match": there["e_tag"]}
            for begin in range(0, size, _PIECE_BYTES):
                piece: Any = {**options, "range": (begin, min(begin + _PIECE_BYTES, size))}
                yield bytes(obstore.get(self._store, key, options=piece).bytes())

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """One sentence of whatever the store says, which is pages long."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError, PermissionError, TimeoutError) as error:
            raise StorageError(f"{self.uri}: {doing}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error).split("\n\nDebug source")[0].strip()
    if _METADATA_SERVER in text:
        text = f"there are no credentials in the environment, and this machine gives none ({text})"
    elif "error sending request" in text or "Connect" in text:
        text = f"the store can't be reached ({text})"
    return " ".join(text.split())[:300]
