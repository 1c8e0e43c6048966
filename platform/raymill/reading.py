"""Read from storage that may not answer: retry with back-off, and then raise StorageError.

Bytes that differ from those written are damage, and their reader reports it. Bytes that can't be
read say nothing about a file: a server was away, a handle went stale, a node lost its disk. Python
raises OSError for both, so every reader uses this module: the OSErrors that are left for a reader
are those of a missing file (`MISSING`) and a parser's own (Arrow's, gzip's), about bytes that were
read.
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
from typing import TYPE_CHECKING, Any, TypeVar

from raymill.errors import DataError, StorageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")

TRIES = 5
# Seconds before the second try; doubled before each later one.
PAUSE_S = 0.25
# A later try doesn't create a missing file, so the reader reports it.
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
# A later try doesn't change these either.
_LASTING = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
_RUST = re.compile(r"\(os error (\d+)\)")


def retried(path: Path, read: Callable[[], T], *, parses: bool = False) -> T:
    """Return the result of `read`, and call it again while the storage doesn't answer.

    With `parses`, `read` is a library's function that also raises OSErrors about bytes: those have
    no error number.

    Raises:
        StorageError: the storage didn't answer in all tries, or refuses; nothing is known about the
            bytes.
        OSError: one of `MISSING`, or a parser's own, unchanged.
    """
    for left in reversed(range(TRIES)):
        try:
            return read()
        except OSError as error:
            number = _refusal(error) if parses else _number(error)
            # Another try wouldn't change these.
            if number in _MISSING or number is None:
                raise
            if not left or number in _LASTING:
                raise StorageError(_unreadable(path, error, number)) from error
            time.sleep(PAUSE_S * 2 ** (TRIES - 1 - left))
    raise AssertionError("the last try returns or raises")


def _number(error: OSError) -> int:
    """Return the number of the storage's refusal, even if the error doesn't carry one."""
    return error.errno or (errno.ENOENT if isinstance(error, MISSING) else errno.EIO)


def _refusal(error: OSError) -> int | None:
    """Return the number of the storage's refusal of a library; None where the library complains
    about bytes."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError):
            if inner.errno is not None or isinstance(inner, TimeoutError | ConnectionError):
                return _number(inner)
            if rust := _RUST.search(str(inner)):
                return int(rust[1])
            if isinstance(inner, FileNotFoundError):
                # safetensors raises this error for any file that it can't open.
                return errno.EIO
        # transformers hides the cause behind an OSError of its own.
        inner = inner.__cause__ or inner.__context__
    return None


def _unreadable(path: Path, error: OSError, number: int) -> str:
    reason = error.strerror or str(error).strip().partition("\n")[0] or os.strerror(number)
    where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
    return (
        f"{path} can't be read{where}: {reason}. The file itself may be whole: run the same command again "
        "when the storage answers"
    )


class PositionedFile(io.RawIOBase):
    """Base of files that are read at a position of their own; `_size` is theirs in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._position = 0

    @property
    def _size(self) -> int:
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position


class _PatientFile(PositionedFile):
    """File whose reads are retried, each time from a new descriptor: a stale one stays stale."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file: io.FileIO | None = None
        self._state = retried(path, self._reopened)

    @property
    def _size(self) -> int:
        return self._state[1]

    def _reopened(self) -> tuple[int, int, int]:
        self._drop()
        self._file = io.FileIO(self._path)
        state = os.fstat(self._file.fileno())
        return state.st_ino, state.st_size, state.st_mtime_ns

    def _drop(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = retried(self._path, lambda: self._read(buffer))
        self._position += count
        return count

    def _read(self, buffer: WriteableBuffer) -> int:
        if self._file is None and self._reopened() != self._state:
            raise StorageError(f"{self._path} was replaced while it was read; try again")
        assert self._file is not None, "the file is open after `_reopened`"
        try:
            return os.preadv(self._file.fileno(), [buffer], self._position)
        except OSError:
            self._drop()
            raise

    def close(self) -> None:
        self._drop()
        super().close()


def user_path(text: str) -> Path:
    """Return the path that a user wrote; `~` is the home folder, but `~nobody` is an ordinary
    name."""
    return Path(os.path.expanduser(text))


def opened(path: Path) -> io.BufferedReader:
    """Open a file to read it from front to back, however long that takes.

    Raises:
        StorageError: it can't be opened; its methods raise it when reading fails.
        OSError: one of `MISSING`.
    """
    # A larger buffer than usual, because each read may be a request to a server.
    return io.BufferedReader(_PatientFile(path), 1 << 17)


def read_bytes(path: Path) -> bytes:
    """Read a file's bytes, all of one version. Raises as `retried` does."""
    return retried(path, path.read_bytes)


def read_range(path: Path, offset: int, buffer: memoryview) -> int:
    """Fill the buffer with a file's bytes from an offset on; return how many there were. Raises as
    `retried` does."""

    def read() -> int:
        with io.FileIO(path) as file:
            count = 0
            while got := os.preadv(file.fileno(), [buffer[count:]], offset + count):
                count += got
            return count

    return retried(path, read)


def read_text(path: Path) -> str:
    """Read a file's text in UTF-8, without a byte order mark. Raises as `retried` does, and
    UnicodeDecodeError."""
    return read_bytes(path).decode("utf-8-sig")


def read_json(path: Path, missing: Any = None) -> Any:
    """Read the JSON value in a file; return `missing` where there is no file.

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
    """Return the file system's record of a path, None where there is nothing.

    Raises StorageError where that isn't known; `Path.exists` and the like would return False.
    """
    try:
        return retried(path, path.stat)
    except MISSING:
        return None


def is_file(path: Path) -> bool:
    """Return whether there is a file. Raises StorageError where that isn't known."""
    state = status(path)
    return state is not None and stat.S_ISREG(state.st_mode)


def is_folder(path: Path) -> bool:
    """Return whether there is a folder. Raises StorageError where that isn't known."""
    state = status(path)
    return state is not None and stat.S_ISDIR(state.st_mode)


def entries(folder: Path) -> list[Path]:
    """List the entries of a folder, by name; none where there is no such folder.

    Raises:
        StorageError: it can't be listed; `Path.glob` and `os.walk` skip such folders silently.
    """
    try:
        return [folder / name for name in sorted(retried(folder, lambda: os.listdir(folder)))]
    except MISSING:
        return []


def files_below(
    folder: Path, wanted: Callable[[Path], bool] = lambda _: True, links: bool = False
) -> Iterator[Path]:
    """Yield all files below a folder, without entering folders that aren't `wanted`.

    With `links`, linked folders are entered too, unless their target is visited anyway.

    Raises:
        StorageError: a folder can't be listed.
    """
    pending, linked = [folder], list[Path]()
    seen: set[tuple[int, int]] = set()
    while pending or linked:
        # Linked folders come last, so that files below the folder itself keep their own names.
        here = pending.pop() if pending else linked.pop(0)
        if links:
            state = status(here)
            if state is None or (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
        for path, is_link, is_directory in retried(here, partial(_scan, here)):
            if not is_directory:
                yield path
            elif wanted(path) and (links or not is_link):
                (linked if is_link else pending).append(path)


def _scan(folder: Path) -> list[tuple[Path, bool, bool]]:
    """Return (path, whether it is a link, whether it is or links to a folder), sorted by name."""
    try:
        with os.scandir(folder) as scan:
            return sorted((folder / item.name, item.is_symlink(), item.is_dir()) for item in scan)
    # The folder was deleted meanwhile.
    except MISSING:
        return []
