"""Folders that are mirrored in an object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymill.errors import StorageError
from raymill.schema.storage import StorageConfig
from raymill.storage import bucket as module
from raymill.storage import mirror
from raymill.storage.bucket import Bucket
from raymill.storage.mirror import Mirror, download_folder, upload_folder
from sections import plain


def test_what_changed_is_uploaded_and_all_comes_back(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "deep").mkdir(parents=True)
    (here / "a").write_text("1")
    (here / "deep" / "b").write_text("2")
    (here / "not").write_text("3")
    (here / "a.tmp-12345678").write_text("half")
    bucket = Bucket(uri)
    uploaded: list[str] = []
    upload = bucket.upload
    monkeypatch.setattr(
        bucket, "upload", lambda path, key: (uploaded.append(key), upload(path, key))
    )
    mirror = Mirror(bucket, here, lambda name: name != "not")
    mirror.push(last="a")
    assert uploaded == ["deep/b", "a"]
    (here / "a").write_text("more")
    mirror.push()
    assert uploaded[2:] == ["a"]
    mirror.push()
    assert len(uploaded) == 3
    Mirror(bucket, there).pull(last="a")
    assert {p.relative_to(there).as_posix(): p.read_text() for p in there.rglob("*") if p.is_file()} == {
        "a": "more",
        "deep/b": "2",
    }  # fmt: skip


def test_a_finished_folder_is_found_on_another_machine(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (plain(StorageConfig, uri, str(tmp_path / name)) for name in ("one", "two"))
    folder = one.folder / "data" / "texts-1"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "0.parquet").write_bytes(b"rows")
    (folder / ".lock").touch()
    (folder / "manifest.json").write_text("{}")
    download_folder(two, two.folder / "data" / "texts-1", "manifest.json")
    assert not two.folder.exists()
    upload_folder(one, folder, "manifest.json")
    upload_folder(one, folder, "manifest.json")
    download_folder(two, two.folder / "data" / "texts-1", "manifest.json")
    download_folder(two, two.folder / "data" / "texts-1", "manifest.json")
    assert (two.folder / "data" / "texts-1" / "train" / "0.parquet").read_bytes() == b"rows"
    assert not (two.folder / "data" / "texts-1" / ".lock").exists()
    assert capsys.readouterr().out.count("\n") == 2
    elsewhere = tmp_path / "elsewhere"
    download_folder(two, elsewhere, "manifest.json")
    assert not elsewhere.exists()
    download_folder(plain(StorageConfig, str(tmp_path)), tmp_path / "data", "manifest.json")


def test_a_pull_that_is_interrupted_ends_with_the_piece_under_way(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(uri)
    for name in ("a", "b"):
        bucket.put(name, bytes(1000))
    monkeypatch.setattr(module, "_PIECE_BYTES", 1)
    pieces: list[int] = []
    add = mirror._ReceivedBytes.add

    def interrupted(self: mirror._ReceivedBytes, size: int) -> None:
        pieces.append(size)
        if len(pieces) == 5:
            raise KeyboardInterrupt
        add(self, size)

    monkeypatch.setattr(mirror._ReceivedBytes, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Mirror(bucket, tmp_path).pull()
    assert len(pieces) < 200
    assert list(tmp_path.iterdir()) == []


def test_another_preparation_of_the_same_name_is_refused(uri: str, tmp_path: Path) -> None:
    one, two = (plain(StorageConfig, uri, str(tmp_path / name)) for name in ("one", "two"))
    for storage in (one, two):
        folder = storage.folder / "data" / "texts-1"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(str(storage.scratch))
    upload_folder(one, one.folder / "data" / "texts-1", "manifest.json")
    with pytest.raises(StorageError, match=r"holds another manifest\.json than"):
        upload_folder(two, folder, "manifest.json")
    fetched = Bucket(f"{uri}/data/texts-1").get("manifest.json")
    assert fetched == str(one.scratch).encode()
