"""Paths of inputs mean what is there: links by their own names, and names that look like patterns as names."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymill.data.sources.files import find_files, passed_over
from raymill.data.sources.globs import matches
from raymill.data.sources.planning import plan_units
from raymill.errors import DataError
from raymill.schema.data_sections import ChatConfig, DataConfig, ValidationConfig
from sections import plain

HOSTILE = (
    "is it done?", "que?ry", "a%20b", "100%", "ü漢", "h#x", "a&b=c", "c,d@e", "[1]", "[a-z]*", "q'uo\"te", "-x",
    "$HOME`id`", "{a}", "~tilde", " spaces ", "a|b<c>;!", "*", "back\\slash", "(x)", "null", "a: b",
)  # fmt: skip
ALL_IN_THREE = ("-is it? 'q\"uo' %20 100%3F ü漢", "#&=,@[1]{a}(x): ;|<c>!~", "$HOME`id` \\ *+ ")


def cached(folder: Path, *snapshots: str) -> Path:
    """Return what `huggingface_hub` makes of a data set's repository."""
    cache = folder / "datasets--org--name"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "0123abcd").write_text('{"text": "a"}\n')
    for snapshot in snapshots:
        data = cache / "snapshots" / snapshot / "data"
        data.mkdir(parents=True)
        (data / "train.jsonl").symlink_to("../../../blobs/0123abcd")
    return cache


def test_links_are_judged_by_their_own_names(tmp_path: Path) -> None:
    cache = cached(tmp_path, "first")
    link = cache / "snapshots" / "first" / "data" / "train.jsonl"
    for given, name in (
        (link, "data/train.jsonl"),
        (link.parent, "data/train.jsonl"),
        (link.parent / "*.jsonl", "data/train.jsonl"),
        (cache / "snapshots/*/data/*", "snapshots/first/data/train.jsonl"),
        (cache, "datasets--org--name/snapshots/first/data/train.jsonl"),
        (cache / "**", "datasets--org--name/snapshots/first/data/train.jsonl"),
    ):
        [piece] = find_files([str(given)], "data.path")
        assert (piece.name, piece.path) == (name, str(link)), given
        data = plain(ChatConfig, name="d", source="chat", path=(str(given),))
        assert not passed_over(data), "what a link is read by isn't passed over"


def test_a_file_that_several_links_lead_to_is_one(tmp_path: Path) -> None:
    cache = cached(tmp_path, "first", "second")
    [piece] = find_files([str(cache)], "data.path")
    assert "/first/" in piece.name
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "z.txt").write_text("z")
    (tmp_path / "own" / "a.txt").symlink_to("z.txt")
    for given in ("own", "own/*"):
        assert [file.name for file in find_files([f"{tmp_path}/{given}"], "data.path")] == [
            "own/z.txt"
        ]


def test_held_out_text_is_not_trained_on_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("x")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "y.txt").symlink_to("../a/x.txt")
    held_out = plain(ValidationConfig, path=(str(tmp_path / "held"),))
    data = plain(
        DataConfig, name="d", source="files", path=(str(tmp_path / "a"),), validation=held_out
    )
    with pytest.raises(DataError, match="share 1 file"):
        plan_units(data, seed=0)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_there_is_no_pattern(tmp_path: Path, name: str) -> None:
    for folder in (name, "1", "b"):
        (tmp_path / folder / name).mkdir(parents=True)
        (tmp_path / folder / name / f"{name}.txt").write_text(folder)
    folder = tmp_path / name / name
    file = folder / f"{name}.txt"
    for given in (folder, file, folder / "*.txt", folder / "**", folder / f"{name}.txt"):
        assert [str(path) for path in matches(str(given))[1]] == [str(file)], given
    if name != "*":
        every = {f"{tmp_path / one / name / name}.txt" for one in (name, "1", "b")}
        assert {str(path) for path in matches(f"{tmp_path}/*/{name}/*.txt")[1]} == every


def test_patterns_are_still_patterns(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    assert len([*matches(f"{tmp_path}/[12]/a.txt")[1]]) == 2
    (tmp_path / "[12]").mkdir()
    assert [*matches(f"{tmp_path}/[12]/a.txt")[1]] == []
