"""Durable files: written completely or not at all, even across a power cut; and locked for one
writer."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raymill.errors import DataError
from raymill.reading import opened

# A parsed JSON object.
JsonObject = dict[str, Any]

_CHUNK_BYTES = 8 * 2**20
# Small enough to stay in the processor's cache while it is hashed.
_PIECE_BYTES = 2**18


def fsync_path(path: Path) -> None:
    """Flush a file's data, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_replacement(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write, which is flushed and replaces `path` when the block ends.

    An error leaves the existing file unchanged.
    """
    temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        fsync_path(temporary)
        # A rename within a folder is atomic; its data must be on the disk first.
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to a temporary sibling, flush it, and rename it over `path`."""
    with atomic_replacement(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cut_torn_line(path: Path) -> None:
    """Truncate a file of lines after its last complete line, which a killed writer may have left
    torn."""
    try:
        stream = path.open("r+b")
    except FileNotFoundError:
        return
    with stream:
        end = stream.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _CHUNK_BYTES)
            stream.seek(start)
            # The file is searched from its end, since only its last line may be torn.
            newline = stream.read(end - start).rfind(b"\n")
            if newline >= 0:
                stream.truncate(start + newline + 1)
                return
            end = start
        stream.truncate(0)


@contextmanager
def exclusive_lock(folder: Path, refusal: str) -> Iterator[None]:
    """Hold the folder's lock; the kernel releases it when the process dies, however it dies.

    Raises:
        DataError: another process holds it; the message is `refusal`.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(refusal) from None
        yield


def sha256_file(path: Path) -> str:
    """Return the hex digest of a file's bytes, which are read in pieces."""
    digest = hashlib.sha256()
    piece = memoryview(bytearray(_PIECE_BYTES))
    with opened(path) as stream:
        while count := stream.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def sha256_files(paths: Sequence[Path]) -> list[str]:
    """Return the hex digests of files, a few at a time."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(sha256_file, paths))


def canonical_json(value: object) -> str:
    """Return the canonical form of a JSON value, of which digests are taken: sorted keys, no
    spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_text(text: str) -> str:
    """Return the hex digest of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_json(value: object) -> str:
    """Return the hex digest of a JSON value, independent of key order."""
    return sha256_text(canonical_json(value))
