"""Access to object stores: whole objects under a URI."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from raymill.durable import atomic_replacement, sha256_json
from raymill.errors import StorageError
from raymill.reading import read_bytes, retried

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

_PIECE_BYTES = 64 * 2**20
_SMALL_BYTES = 32 * 2**20
_ENDPOINTS = ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")
# Machines of a cloud request their credentials at this address.
_METADATA_SERVER = "169.254.169.254"
_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=600)}


@dataclass(frozen=True)
class StoredObject:
    """Object of a store, as it lists it. `version` is a tag that changes with its bytes, if it has one."""

    key: str
    size: int
    modified_ns: int
    version: str | None


class Bucket:
    """Objects under a URI such as `s3://bucket/path`; keys are relative to it.

    Credentials, region and endpoint come from the environment or the machine, under the names that
    the store's own tools use: AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS,
    AZURE_STORAGE_ACCOUNT_NAME and the like. Every method raises StorageError where the store fails.
    """

    def __init__(self, uri: str) -> None:
        from obstore.store import from_url

        self.uri = uri.rstrip("/")
        # The timeout covers a whole answer, which is one piece at most.
        client: ClientConfig = {"connect_timeout": "10s", "timeout": "120s"}
        if any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS):
            # A user who sets an http endpoint wants it unencrypted.
            client["allow_http"] = True
        with self._translate_errors("opening"):
            # The path is quoted so that it is taken literally: `a%20b` isn't `a b`, `#` ends nothing.
            scheme, slashes, path = self.uri.partition("://")
            self._store = from_url(
                f"{scheme}{slashes}{quote(path)}", client_options=client, retry_config=_RETRIES
            )

    def get(self, key: str) -> bytes | None:
        """Return an object's bytes; None where there is no such object."""
        import obstore

        with self._translate_errors(f"reading {key}"):
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def put(self, key: str, data: bytes) -> None:
        """Write an object, and replace an existing one."""
        import obstore

        with self._translate_errors(f"writing {key}"):
            obstore.put(self._store, key, data)

    def put_new(self, key: str, data: bytes) -> bool:
        """Create an object; return False where there is one already.

        Of several writers at once, one succeeds. The existing object may be this very one: a
        request whose answer was lost is sent again.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._translate_errors(f"writing {key}"):
            try:
                obstore.put(self._store, key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def upload(self, path: Path, key: str) -> None:
        """Write a file's bytes, in parts where it is large."""
        import obstore

        with self._translate_errors(f"uploading {path} to {key}"):
            # A small file is read at once, so that appending to it meanwhile does no harm.
            small = retried(path, path.stat).st_size <= _SMALL_BYTES
            obstore.put(self._store, key, read_bytes(path) if small else path)

    def download(
        self, key: str, path: Path, on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        """Write an object's bytes to a file, completely or not at all.

        `on_bytes` is called with the number of bytes that arrived.
        """
        with atomic_replacement(path) as temporary, temporary.open("wb") as stream:
            for chunk in self._chunks(key):
                stream.write(chunk)
                on_bytes(len(chunk))

    def read_range(
        self, key: str, offset: int, buffer: memoryview, version: str | None = None
    ) -> int:
        """Fill the buffer with an object's bytes from an offset on; return how many there were.

        With a `version`, the object must not have been replaced since it had that one.

        Raises:
            FileNotFoundError: there is no such object.
        """
        import obstore
        from obstore.exceptions import BaseError, PreconditionError

        if not len(buffer):
            return 0
        options: GetOptions = {"range": (offset, offset + len(buffer))}
        if version is not None:
            options["if_match"] = version
        with self._translate_errors(f"reading {key}", missing=True):
            try:
                data = obstore.get(self._store, key, options=options).bytes()
            except PreconditionError:
                raise
            except BaseError:
                # Stores refuse ranges that don't lie in the object, each in its own words.
                left = max(0, int(obstore.head(self._store, key)["size"]) - offset)
                if left >= len(buffer):
                    raise
                return self.read_range(key, offset, buffer[:left], version) if left else 0
            count = len(data)
            buffer[:count] = memoryview(data)
            return count

    def sizes(self, prefix: str = "", after: str | None = None) -> dict[str, int]:
        """Return the size of every object under a prefix, which ends at a `/`, by key.

        With `after`, only keys that sort after it.
        """
        return {str(entry["path"]): int(entry["size"]) for entry in self._listed(prefix, after)}

    def objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the objects under a prefix in the order of their keys, a page at a time."""
        import obstore

        with self._translate_errors(f"listing {prefix}"):
            for page in obstore.list(self._store, prefix or None):
                yield from map(_stored, page)

    def find(self, key: str) -> StoredObject | None:
        """Return what the store says about an object; None where there is no such object."""
        import obstore

        with self._translate_errors(f"looking for {key}"):
            try:
                return _stored(obstore.head(self._store, key))
            except FileNotFoundError:
                return None

    def folders(self, prefix: str = "") -> list[str]:
        """Return the names of the folders directly under a prefix."""
        import obstore

        with self._translate_errors(f"listing {prefix}"):
            paths = obstore.list_with_delimiter(self._store, prefix or None)["common_prefixes"]
        return sorted(path.rpartition("/")[2] for path in paths)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; missing ones are ignored."""
        import obstore

        with self._translate_errors("deleting"):
            for key in keys:
                try:
                    obstore.delete(self._store, key)
                except FileNotFoundError:
                    continue

    def fingerprint(self) -> str:
        """Return a digest of all objects, which changes whenever one of them does."""
        objects = ([str(o["path"]), int(o["size"]), str(o["e_tag"])] for o in self._listed())
        return sha256_json(sorted(objects))

    def _listed(self, prefix: str = "", after: str | None = None) -> Sequence[ObjectMeta]:
        import obstore

        with self._translate_errors(f"listing {prefix}"):
            return obstore.list(self._store, prefix or None, offset=after).collect()

    def _chunks(self, key: str) -> Iterator[bytes]:
        """Yield an object's bytes in pieces, each of which is retried by itself; all of one
        version."""
        import obstore

        with self._translate_errors(f"reading {key}"):
            head = obstore.head(self._store, key)
            size, version = int(head["size"]), head["e_tag"]
            # A large object in one request would have to be read from its start again after a
            # failure.
            for start in range(0, size, _PIECE_BYTES):
                options: GetOptions = {"range": (start, min(start + _PIECE_BYTES, size))}
                if version is not None:
                    options["if_match"] = version
                yield bytes(obstore.get(self._store, key, options=options).bytes())

    @contextmanager
    def _translate_errors(self, doing: str, missing: bool = False) -> Iterator[None]:
        """Raise the store's errors as StorageError, each shortened to one sentence.

        With `missing`, FileNotFoundError is left as it is.
        """
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError, PermissionError, TimeoutError) as error:
            if missing and isinstance(error, FileNotFoundError):
                raise
            raise StorageError(f"{self.uri}: {doing}: {_reason(error)}") from error


def _stored(meta: ObjectMeta) -> StoredObject:
    # Stores keep whole seconds or milliseconds, which a float's nanoseconds would blur.
    modified_ns = round(meta["last_modified"].timestamp() * 1000) * 1_000_000
    return StoredObject(str(meta["path"]), int(meta["size"]), modified_ns, meta["e_tag"])


def _reason(error: Exception) -> str:
    # The store's errors end in pages of debugging output.
    text = str(error).split("\n\nDebug source")[0].strip()
    # Without credentials, the client asks this server, and its failure is misleading.
    if _METADATA_SERVER in text:
        text = f"no credentials in the environment, and this machine provides none ({text})"
    elif "error sending request" in text or "Connect" in text:
        text = f"the store can't be reached ({text})"
    return " ".join(text.split())[:300]
