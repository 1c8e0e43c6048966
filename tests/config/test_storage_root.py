"""Storage roots: each is the folder that was named; one that can't be created is refused in a sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from data.sources.test_links import ALL_IN_THREE, HOSTILE
from raymill.config import load
from raymill.config.entry import EXIT_REFUSED, main
from raymill.errors import ConfigError
from raymill.schema.storage import StorageConfig, root_problems, sqlite_address
from sections import plain


def refused(root: Path, capsys: pytest.CaptureFixture[str], job: str = "prepare") -> str:
    def never(_: object) -> int:
        raise AssertionError("the job must not begin")

    assert main(job, never, [f"storage.root={root}"]) == EXIT_REFUSED
    return capsys.readouterr().err


def test_a_root_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for root in (file, file / "below" / "it"):
        message = refused(root, capsys)
        assert f"1. storage.root={root}: {file} is a file, not a folder; give another" in message
        assert "Traceback" not in message
    message = refused(file / "below", capsys, job="pipeline")
    assert message.count("is a file") == 1
    assert "File name too long" in refused(tmp_path / ("x" * 300), capsys)
    (tmp_path / "loop").symlink_to("loop")
    assert "its links lead nowhere" in refused(tmp_path / "loop" / "x", capsys)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    message = refused(tmp_path / "a" / "b", capsys)
    assert f"{tmp_path} can't be written to: you have no permission for it" in message
    assert not (tmp_path / "a").exists()


def test_a_read_only_file_system_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = os.statvfs(tmp_path)
    read_only = os.statvfs_result((*flags[:8], flags.f_flag | os.ST_RDONLY, *flags[9:]))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "statvfs", lambda path: read_only)
    [message] = root_problems(plain(StorageConfig, str(tmp_path / "new")))
    assert "it is on a read-only file system" in message


def test_who_only_reads_needs_no_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main("chat", lambda _: 0, [f"storage.root={tmp_path / 'file'}"]) == 0


@pytest.mark.parametrize("name", HOSTILE)
def test_every_root_has_a_database_of_its_own(tmp_path: Path, name: str) -> None:
    from sqlalchemy import make_url

    database = tmp_path / name / "mlflow.db"
    assert make_url(sqlite_address(database)).database == str(database)


@pytest.mark.parametrize("name", ALL_IN_THREE)
def test_a_root_is_the_folder_that_was_named(tmp_path: Path, name: str) -> None:
    overrides = [f"storage.root={tmp_path / name}", f"data.path={tmp_path / name}", "data=files"]
    job = load("prepare", overrides)
    assert job.storage.folder == tmp_path / name
    assert job.data.path == (str(tmp_path / name),)


@pytest.mark.parametrize("name", ["a\nb", "a\x7f", "\udcff", "\0"])
def test_line_breaks_and_their_like_are_refused(name: str) -> None:
    keys = ("storage.root", "data.path", "data.validation.path")
    with pytest.raises(ConfigError) as refusal:
        load("prepare", ["data=files", *(f"{key}=/tmp/{name}" for key in keys)])
    for key in keys:
        assert re.search(f"{re.escape(key)}=.*control character", str(refusal.value))


def test_nothing_is_no_folder() -> None:
    with pytest.raises(ConfigError, match=r"storage\.root: give a folder"):
        load("prepare", ["storage.root="])
    assert load("prepare", ["storage.root=~nobody-of-this-name/x"]).storage.folder.name == "x"


@pytest.mark.parametrize("uri", ["s3://", "s3://b/a/../c", "s3://b/a//c", "s3://b/."])
def test_places_in_a_bucket_are_spelled_in_one_way(uri: str) -> None:
    with pytest.raises(ConfigError, match="expected a folder, s3://bucket/path"):
        load("prepare", [f"storage.root={uri}"])
