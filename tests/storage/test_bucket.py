"""Objects in a real S3 server: one creator, whole files, and one sentence for each failure."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from at_once import at_once
from raymill.errors import StorageError
from raymill.storage.bucket import Bucket
from servers import free_port, refusing_server


def test_of_many_who_create_an_object_one_does(uri: str) -> None:
    bucket = Bucket(uri)
    got: list[int] = []

    def create(number: int) -> None:
        if bucket.put_new("one", str(number).encode()):
            got.append(number)

    at_once(*(partial(create, number) for number in range(8)))
    assert len(got) == 1
    assert bucket.get("one") == str(got[0]).encode()


@pytest.mark.parametrize("size", [0, 1_000, 40 * 2**20])
def test_files_go_there_and_come_back(uri: str, tmp_path: Path, size: int) -> None:
    bucket, path, back = Bucket(uri), tmp_path / "file", tmp_path / "back"
    path.write_bytes(os.urandom(size))
    bucket.upload(path, "a/b/file")
    assert bucket.sizes() == {"a/b/file": size}
    assert bucket.sizes("a") == {"a/b/file": size}
    assert bucket.sizes("a/b/fi") == {}
    assert bucket.folders() == ["a"]
    bucket.download("a/b/file", back)
    assert back.read_bytes() == path.read_bytes()
    for offset, wanted in ((0, size), (size // 2, size), (max(0, size - 3), 7), (size + 5, 4)):
        part = bytearray(wanted)
        count = bucket.read_range("a/b/file", offset, memoryview(part))
        assert part[:count] == path.read_bytes()[offset : offset + wanted]
    with pytest.raises(FileNotFoundError):
        bucket.read_range("a/b/none", 0, memoryview(bytearray(4)))
    bucket.delete(["a/b/file", "nothing"])
    assert bucket.get("a/b/file") is None


def test_what_is_not_there(uri: str, tmp_path: Path) -> None:
    bucket = Bucket(uri)
    assert bucket.get("nothing") is None
    with pytest.raises(StorageError, match=rf"{uri}: reading nothing: .*not found"):
        bucket.download("nothing", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_places_are_as_they_are_typed(uri: str) -> None:
    names = ("a b", "a%20b", "a", "a#b", "a?b", "ü漢", "100%", "[1]&=,@+;'\"")
    for name in names:
        Bucket(f"{uri}/{name}").put("which", name.encode())
    for name in names:
        bucket = Bucket(f"{uri}/{name}")
        assert bucket.get("which") == name.encode()
        assert bucket.sizes() == {"which": len(name.encode())}


def test_a_bucket_that_is_not_there(s3: dict[str, str]) -> None:
    with pytest.raises(StorageError, match="NoSuchBucket"):
        Bucket("s3://another/place").put("a", b"")


def test_a_store_that_is_away_is_told_of_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StorageError) as told:
        Bucket("s3://bucket/place").get("a")
    assert "s3://bucket/place: reading a: the store can't be reached" in str(told.value)
    assert "\n" not in str(told.value)
    with refusing_server() as port:
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(StorageError, match="500"):
            Bucket("s3://bucket/place").get("a")
