"""Refusals of the storage are retried and then reported as such; other errors reach the reader."""

from __future__ import annotations

import errno
import glob
import os
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raymill import reading
from raymill.data.sources.globs import matches
from raymill.errors import StorageError
from raymill.reading import files_below, opened, read_bytes, read_text, retried


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfx\xef\xbb\xbf")
    assert read_text(tmp_path / "a") == "x\ufeff", "one inside the text is a character of it"


class Failing:
    """Raises each of `errors`, and then gives 7."""

    def __init__(self, *errors: OSError) -> None:
        self.errors = list(errors)

    def __call__(self) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return 7


WEATHER = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.ETIMEDOUT, "Connection timed out"),
    TimeoutError("timed out"),
    ConnectionResetError("reset"),
]


@pytest.mark.parametrize("parses", [False, True])
@pytest.mark.parametrize("error", WEATHER, ids=str)
def test_what_may_pass_is_tried_again_with_growing_pauses(
    error: OSError, parses: bool, pauses: list[float]
) -> None:
    path = Path("/data/one")
    assert retried(path, Failing(error, error), parses=parses) == 7
    assert pauses == [0.25, 0.5], "each pause is twice the one before"
    pauses.clear()
    with pytest.raises(StorageError, match=r"^/data/one can't be read: .*file itself may be whole"):
        retried(path, Failing(*[error] * reading.TRIES), parses=parses)
    assert pauses == [0.25, 0.5, 1.0, 2.0]


@pytest.mark.parametrize("parses", [False, True])
def test_what_does_not_pass_is_not_waited_for(parses: bool, pauses: list[float]) -> None:
    for missing in (
        FileNotFoundError(errno.ENOENT, "No such file"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory"),
        IsADirectoryError(errno.EISDIR, "Is a directory"),
    ):
        with pytest.raises(type(missing)):
            retried(Path("one"), Failing(missing), parses=parses)
    with pytest.raises(StorageError, match="one can't be read: Permission denied"):
        retried(
            Path("one"), Failing(PermissionError(errno.EACCES, "Permission denied")), parses=parses
        )
    assert not pauses


def test_a_parsers_complaint_about_bytes_is_its_own(tmp_path: Path, pauses: list[float]) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + b"\xff" * 40 + b"\x20\0\0\0PAR1")
    with pytest.raises(OSError, match="deserialize thrift") as raised:
        retried(path, lambda: pq.read_metadata(path), parses=True)
    assert not isinstance(raised.value, StorageError)
    assert not pauses


def hidden(inner: OSError) -> OSError:
    """Hide an error in the way that transformers does."""
    try:
        try:
            raise inner
        except OSError:
            raise OSError("It looks like the config file isn't valid") from None
    except OSError as error:
        return error


def test_what_a_library_hides_is_found(pauses: list[float]) -> None:
    of_rust = OSError("No such device (os error 19)")
    for error in (hidden(WEATHER[1]), of_rust, FileNotFoundError("No such file or directory: x")):
        assert retried(Path("one"), Failing(error), parses=True) == 7
    with pytest.raises(OSError, match="It looks like"):
        retried(Path("one"), Failing(hidden(FileNotFoundError(2, "none"))), parses=True)


def test_a_file_is_read_on_where_its_handle_went_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    path = tmp_path / "file"
    content = os.urandom(3 << 20)
    path.write_bytes(content)
    preadv, calls = os.preadv, 0

    def stale(descriptor: int, *arguments: Any) -> int:
        nonlocal calls
        calls += 1
        if calls in (2, 3, 7):
            raise OSError(errno.ESTALE, "Stale file handle")
        return preadv(descriptor, *arguments)

    monkeypatch.setattr(os, "preadv", stale)
    with opened(path) as stream:
        found = bytearray()
        while piece := stream.read(400_000):
            found += piece
        assert found == content
        stream.seek(-10, os.SEEK_END)
        assert stream.read() == content[-10:]
    assert pauses == [0.25, 0.5, 0.25]


def test_halves_of_two_versions_are_never_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"a" * (1 << 20))
    preadv = os.preadv

    def replaced(*arguments: Any) -> int:
        if not other.exists():
            other.write_bytes(b"b" * (1 << 20))
            return preadv(*arguments)
        if path.read_bytes()[:1] == b"a":
            other.rename(path)
            raise OSError(errno.ESTALE, "Stale file handle")
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", replaced)
    with opened(path) as stream:
        stream.read(1 << 18)
        with pytest.raises(StorageError, match="was replaced while it was read"):
            stream.read()
    assert read_bytes(path) == b"b" * (1 << 20), "from its beginning on it is read"


def names(root: Path, links: bool) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in files_below(root, links=links))


def test_linked_folders_are_read_once_and_end(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for path in (root / "a" / "x", elsewhere / "deep" / "y"):
        path.parent.mkdir(parents=True)
        path.write_text("")
    (root / "linked").symlink_to(elsewhere)
    (root / "again").symlink_to(root / "a")
    (elsewhere / "deep" / "up").symlink_to(root)
    assert names(root, links=True) == ["a/x", "linked/deep/y"]
    assert names(root, links=False) == ["a/x"]
    assert sorted(path.name for path in files_below(root, lambda p: p.name != "a")) == []


PATTERNS = (
    "*.txt", "**/*.txt", "**", "a/**", "*/*.txt", "a/*/*", "?/x.txt", "[ab]/**/*.txt", ".h/*.txt", "**/.h/*",
    "a/.*", "a/x.txt", "nothing/*", "**/b/**/*.txt",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_globs_match_what_globmatches(tmp_path: Path, pattern: str) -> None:
    for name in (
        "x.txt",
        "a/x.txt",
        "a/.y.txt",
        "a/b/x.txt",
        "b/c/b/z.txt",
        ".h/x.txt",
        "b/c/n.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    expected = {
        str(Path(hit).resolve())
        for hit in glob.iglob(str(tmp_path / pattern), recursive=True)
        if Path(hit).is_file()
    }
    assert {str(path) for path in matches(str(tmp_path / pattern))[1]} == expected


def test_files_that_are_linked_from_elsewhere_match_too(tmp_path: Path) -> None:
    (tmp_path / "store" / "v3").mkdir(parents=True)
    (tmp_path / "store" / "v3" / "x.txt").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "store" / "v3")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    for pattern in ("data/*/*.txt", "data/**/*.txt", "data"):
        _, found = matches(str(tmp_path / pattern))
        assert [str(path) for path in found] == [str(tmp_path / "data" / "link" / "x.txt")], pattern
