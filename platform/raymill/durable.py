"""Writing files so that they are either wholly there or not there at all, also after a power cut; and one
writer at a time."""

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

_CHUNK_BYTES = 8 * 2**20
_PIECE_BYTES = 2**18  # one that stays in the processor's cache while it is digested


def fsync_path(path: Path) -> None:
    """Flush a file's data, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary sibling to write, which is flushed and takes `path`'s place when the block ends; an error
    leaves what was there."""
    temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to a temporary sibling, flush it, and rename it over `path`."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cut_torn_line(path: Path) -> None:
    """Make a file of lines end with a whole one: what a killed writer left of its last line goes."""
    try:
        stream = path.open("r+b")
    except FileNotFoundError:
        return
    with stream:
        end = stream.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - _CHUNK_BYTES)
            stream.seek(begin)
            newline = stream.read(end - begin).rfind(b"\n")
            if newline >= 0:
                stream.truncate(begin + newline + 1)
                return
            end = begin
        stream.truncate(0)


@contextmanager
def only_one(folder: Path, refusal: str) -> Iterator[None]:
    """Hold the folder's lock; the kernel frees it when the process dies, however it dies.

    Raises:
        DataError: another process holds it; says `refusal`.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(refusal) from None
        yield


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces so that memory stays flat."""
    digest = hashlib.sha256()
    piece = memoryview(bytearray(_PIECE_BYTES))
    with opened(path) as stream:
        while count := stream.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def sha256_files(paths: Sequence[Path]) -> list[str]:
    """Hex digests of files, a few at a time."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(sha256_file, paths))


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value that digests are taken of: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_text(text: str) -> str:
    """Hex digest of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of a JSON value, independent of key order."""
    return sha256_text(canonical_json(value))
