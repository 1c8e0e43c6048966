"""Reading from storage that may not answer: tried again with back-off, and then a StorageError.

Bytes that differ from those that were written are damage, which whoever reads them names. Bytes that can't
be read say nothing about a file: a server was away, a handle went stale, a node lost its disk. Both reach
Python as an OSError, so every reader goes through here: the OSErrors that are left for it to see are those of
a missing file (`MISSING`) and a parser's own (Arrow's, gzip's), which are about bytes that were read.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from raymill.errors import DataError, StorageError

T = TypeVar("T")

TRIES = 5
PAUSE_S = 0.25  # before the second try, doubled before each one after it
# There is no such file, which a try later doesn't change: left to the reader to name.
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
# Nor does it change these.
_LASTING = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
_RUST = re.compile(r"\(os error (\d+)\)")


def retried(path: Path, read: Callable[[], T], *, parses: bool = False) -> T:
    """Return what `read` makes of `path`, and call it again while the storage doesn't answer.

    With `parses`, `read` is a library's that raises OSErrors about bytes, too: those have no number.

    Raises:
        StorageError: the storage didn't answer in all tries, or refuses; nothing is known of the bytes.
        OSError: one of `MISSING`, or a parser's own, as it was raised.
    """
    for left in reversed(range(TRIES)):
        try:
            return read()
        except OSError as error:
            number = _refusal(error) if parses else _number(error)
            if number in _MISSING or number is None:
                raise
            if not left or number in _LASTING:
                raise StorageError(_unreadable(path, error, number)) from error
            time.sleep(PAUSE_S * 2 ** (TRIES - 1 - left))
    raise AssertionError("the last try returns or raises")


def _number(error: OSError) -> int:
    """Return what the storage refused with, however little the error says."""
    return error.errno or (errno.ENOENT if isinstance(error, MISSING) else errno.EIO)


def _refusal(error: OSError) -> int | None:
    """Return what the storage refused a library with; None where the library complains about bytes."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError):
            if found.errno is not None or isinstance(found, TimeoutError | ConnectionError):
                return _number(found)
            if rust := _RUST.search(str(found)):
                return int(rust[1])
            if isinstance(found, FileNotFoundError):
                return errno.EIO  # safetensors says so of whatever it can't open
        # transformers hides what it met behind an OSError of its own.
        found = found.__cause__ or found.__context__
    return None


def _unreadable(path: Path, error: OSError, number: int) -> str:
    reason = error.strerror or str(error).strip().partition("\n")[0] or os.strerror(number)
    where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
    return (
        f"{path} can't be read{where}: {reason}. That says nothing about its bytes, which may be whole: run "
        "the same command again when the storage answers"
    )


class _PatientFile(io.RawIOBase):
    """A file whose reads are tried again, from a new descriptor each time: a stale one stays stale."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._position = 0
        self._file: io.FileIO | None = None
        self._state = retried(path, self._reopened)

    def _reopened(self) -> tuple[int, int, int]:
        self._drop()
        self._file = io.FileIO(self._path)
        found = os.fstat(self._file.fileno())
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _drop(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._state[1]}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = retried(self._path, lambda: self._read(buffer))
        self._position += count
        return count

    def _read(self, buffer: Any) -> int:
        if self._file is None and self._reopened() != self._state:
            raise StorageError(f"{self._path} was replaced while it was read; try again")
        assert self._file is not None
        try:
            return os.preadv(self._file.fileno(), [buffer], self._position)
        except OSError:
            self._drop()
            raise

    def close(self) -> None:
        self._drop()
        super().close()


def user_path(text: str) -> Path:
    """Return a path as a user writes it; `~` is the home folder, and `~nobody` a name like any other."""
    return Path(os.path.expanduser(text))


def opened(path: Path) -> io.BufferedReader:
    """A file to read from front to back, however long it takes.

    Raises:
        StorageError: it can't be opened; and from its methods, it can't be read on.
        OSError: one of `MISSING`.
    """
    return io.BufferedReader(_PatientFile(path), 1 << 17)


def read_bytes(path: Path) -> bytes:
    """A file's bytes, all of one version. Raises as `retried` does."""
    return retried(path, path.read_bytes)


def read_text(path: Path) -> str:
    """A file's text in UTF-8, without a byte order mark. Raises as `retried` does, and UnicodeDecodeError."""
    return read_bytes(path).decode("utf-8-sig")


def read_json(path: Path, missing: Any = None) -> Any:
    """The JSON value that a file holds; `missing` where there is no file.

    Raises:
        DataError: the file isn't JSON.
        StorageError: it can't be read.
    """
    try:
        return json.loads(read_bytes(path))
    except MISSING:
        return missing
    except ValueError as error:
        raise DataError(
            f"{path} isn't JSON ({error}): it was damaged or changed; restore it"
        ) from error


def status(path: Path) -> os.stat_result | None:
    """Return what the file system says of a path, None where there is nothing.

    Raises StorageError where that isn't known: `Path.exists` and its kin take it for nothing.
    """
    try:
        return retried(path, path.stat)
    except MISSING:
        return None


def is_file(path: Path) -> bool:
    """Tell whether there is a file. Raises StorageError where that isn't known."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: Path) -> bool:
    """Tell whether there is a folder. Raises StorageError where that isn't known."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def entries(folder: Path) -> list[Path]:
    """List what lies in a folder, by name; nothing where there is no such folder.

    Raises:
        StorageError: it can't be listed; `Path.glob` and `os.walk` leave such folders out in silence.
    """
    try:
        return [folder / name for name in sorted(retried(folder, lambda: os.listdir(folder)))]
    except MISSING:
        return []


def files_below(
    folder: Path, wanted: Callable[[Path], bool] = lambda _: True, links: bool = False
) -> Iterator[Path]:
    """All files below a folder; folders that aren't `wanted` aren't looked into. With `links`, linked folders
    are, unless what they link to is seen anyhow.

    Raises:
        StorageError: a folder can't be listed.
    """
    pending, linked = [folder], list[Path]()
    seen: set[tuple[int, int]] = set()
    while pending or linked:
        # Linked ones last: what lies below the folder itself keeps its own name.
        here = pending.pop() if pending else linked.pop(0)
        if links:
            found = status(here)
            if found is None or (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
        for path, is_link, is_directory in retried(here, partial(_scanned, here)):
            if not is_directory:
                yield path
            elif wanted(path) and (links or not is_link):
                (linked if is_link else pending).append(path)


def _scanned(folder: Path) -> list[tuple[Path, bool, bool]]:
    """(path, whether it is a link, whether it is or links to a folder) by name."""
    try:
        with os.scandir(folder) as found:
            return sorted((folder / one.name, one.is_symlink(), one.is_dir()) for one in found)
    except MISSING:
        return []  # it was deleted meanwhile
