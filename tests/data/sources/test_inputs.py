"""Inputs are found in a fixed order, cut without losing a byte, and named when they are bad."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.data.sources import json_lines, plain_text, planning
from raymill.data.sources.documents import Document, DocumentParser
from raymill.data.sources.files import find_files
from raymill.data.sources.format import Bad
from raymill.data.sources.inputs import BY_RECORD
from raymill.data.sources.planning import plan_units
from raymill.data.sources.records import read_records
from raymill.data.text.inputs_check import range_sha256
from raymill.errors import DataError
from raymill.schema.data_sections import DataConfig, ValidationConfig
from sections import plain

READING = DocumentParser(text_column="text", group_column=None, fraction=0.5, seed=1)


def config(folder: Path, **changes: object) -> DataConfig:
    return plain(DataConfig, name="d", source="files", path=(str(folder),), **changes)  # type: ignore[arg-type]


def read_all(folder: Path, unit_bytes: int = 1 << 26) -> list[Document | Bad]:
    found: list[Document | Bad] = []
    for piece in planning._cut(find_files([str(folder)], "data.path"), unit_bytes):
        digest = hashlib.sha256()
        found += read_records(piece, READING, digest)
        if piece.length:
            assert digest.hexdigest() == range_sha256(piece)
    return found


def texts(found: list[Document | Bad]) -> list[str]:
    return [record.text for record in found if isinstance(record, Document)]


def bad(found: list[Document | Bad]) -> list[str]:
    return [f"{record.where}: {record.why}" for record in found if isinstance(record, Bad)]


def lines(*documents: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in documents)


def test_every_format_gives_its_documents_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("\ufeffänderung")
    (tmp_path / "sub" / "b.md").write_text("# b")
    (tmp_path / "c.jsonl").write_bytes(lines("c1", "c2") + b"\n")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines("d1")) + gzip.compress(lines("d2")))
    frames = [zstandard.compress(lines("e1")), zstandard.compress(lines("e2"))]
    (tmp_path / "e.jsonl.zst").write_bytes(b"".join(frames))
    pq.write_table(pa.table({"text": ["f1", "f2"], "n": [1, 2]}), tmp_path / "f.parquet")
    (tmp_path / "ignored.csv").write_text("no")
    (tmp_path / ".hidden.txt").write_text("no")
    assert texts(read_all(tmp_path)) == (
        ["änderung", "c1", "c2", "d1", "d2", "e1", "e2", "f1", "f2", "# b"]
    )


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """Nor is one before a line, where files were put together."""
    mark = "\ufeff".encode()
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_bytes(mark + name.encode())
    marked = mark + lines("1") + mark + lines("2")
    (tmp_path / "c.jsonl").write_bytes(marked)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(marked))
    (tmp_path / "e.jsonl.zst").write_bytes(zstandard.compress(marked))
    found = read_all(tmp_path)
    assert texts(found) == ["a.txt", "b.md", *["1", "2"] * 3]
    assert not bad(found)


def test_globs_files_and_folders_of_one_name(tmp_path: Path) -> None:
    for folder in ("x/docs", "y/docs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.txt").write_text(folder)
    names = [f.name for f in find_files([f"{tmp_path}/x/docs", f"{tmp_path}/y/docs"], "data.path")]
    assert names == ["docs/a.txt", "docs~2/a.txt"]
    globbed = find_files([f"{tmp_path}/**/*.txt"], "data.path")
    assert [file.name.split("/", 1)[1] for file in globbed] == ["x/docs/a.txt", "y/docs/a.txt"]
    assert len(find_files([f"{tmp_path}/x/docs/a.txt"], "data.path")) == 1


@pytest.mark.parametrize(
    ("pattern", "why"), [("no", "doesn't exist"), ("*.txt", "no file matches")]
)
def test_a_path_without_input_is_named(tmp_path: Path, pattern: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        find_files([f"{tmp_path}/{pattern}"], "data.path")


def test_a_folder_of_other_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("x")
    with pytest.raises(DataError, match=r"such as table\.csv, but none ends in \.txt"):
        find_files([str(tmp_path)], "data.path")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=20), st.integers(1, 200))
def test_cutting_json_lines_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], unit_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    (folder / "a.jsonl").write_bytes(
        b"\n".join(json.dumps({"text": text}, ensure_ascii=False).encode() for text in documents)
    )
    assert texts(read_all(folder, unit_bytes)) == documents


def test_names_that_are_no_text_and_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"a\.txt can't be read \(No such file"):
        find_files([str(tmp_path)], "data.path")
    (tmp_path / "a.txt").unlink()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("x")
    with pytest.raises(DataError, match="isn't UTF-8; rename"):
        find_files([str(tmp_path)], "data.path")


def test_a_long_text_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "DOCUMENT_BYTES", 64)
    monkeypatch.setattr(plain_text, "LINE_BYTES", 16)
    text = "".join(f"zeile {i} äöü€\n" for i in range(40)) + "€" * 100
    (tmp_path / "a.txt").write_text(text)
    for unit_bytes in (1 << 20, 100):
        parts = texts(read_all(tmp_path, unit_bytes))
        assert "".join(parts) == text
        assert all(len(part.encode()) <= 64 + 16 for part in parts)


def test_parquet_is_cut_at_row_groups(tmp_path: Path) -> None:
    documents = [f"document {i} " * 20 for i in range(50)]
    pq.write_table(pa.table({"text": documents}), tmp_path / "a.parquet", row_group_size=7)
    pieces = [*planning._cut(find_files([str(tmp_path)], "data.path"), 200)]
    assert len(pieces) > 3
    assert texts(read_all(tmp_path, 200)) == documents


def test_bad_records_are_named_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\nbroken \xff here\n")
    (tmp_path / "b.txt").write_bytes(b"")
    rows = [b'{"text": "ok"}', b'{"text": ', b'{"other": 1}', b'{"text": null}', b'{"text": 5}']
    rows += [b"[1]", b'{"text": "\xff"}', b'{"text": "\\ud800"}', b'{"text": "end"}']
    (tmp_path / "c.jsonl").write_bytes(b"\n".join(rows))
    table = pa.table({"text": ["ok", None]})
    pq.write_table(table, tmp_path / "d.parquet")
    pq.write_table(pa.table({"body": ["x", "y"]}), tmp_path / "e.parquet")
    pq.write_table(pa.table({"text": [1, 2, 3]}), tmp_path / "f.parquet")
    for unit_bytes in (1 << 20, 30):
        found = read_all(tmp_path, unit_bytes)
        assert texts(found) == ["ok", "end", "ok"]
        root = tmp_path.name
        named = bad(found)
        assert named[0] == f"{root}/a.txt:2: not UTF-8 (invalid start byte)"
        assert named[1] == f"{root}/b.txt: the file is empty"
        assert named[2].startswith(f"{root}/c.jsonl:2: not JSON")
        assert named[3] == f"{root}/c.jsonl:3: no column 'text' (has other)"
        assert named[4] == f"{root}/c.jsonl:4: column 'text' holds null, expected text"
        assert named[5] == f"{root}/c.jsonl:5: column 'text' holds int, expected text"
        assert named[6] == f"{root}/c.jsonl:6: expected a JSON object, found list"
        assert named[7].startswith(f"{root}/c.jsonl:7: not UTF-8")
        assert named[8].startswith(f"{root}/c.jsonl:8: column 'text' holds half of a surrogate")
        assert named[9] == f"{root}/d.parquet, row 1: column 'text' holds null, expected text"
        assert named[10] == f"{root}/e.parquet, rows 0 to 1: no column 'text' (has body)"
        assert (
            named[11] == f"{root}/f.parquet, rows 0 to 2: column 'text' holds int64, expected text"
        )
        assert sum(record.count for record in found if isinstance(record, Bad)) == 15


def test_an_overlong_line_is_bad_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "LINE_BYTES", 64)
    (tmp_path / "a.jsonl").write_bytes(lines("ok", "x" * 300, "too"))
    found = read_all(tmp_path)
    assert texts(found) == ["ok", "too"]
    assert [record.where.split(":")[1] for record in found if isinstance(record, Bad)] == ["2"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_cut_off_file_is_refused(tmp_path: Path, name: str) -> None:
    text = lines(*(hashlib.sha256(str(i).encode()).hexdigest() for i in range(2000)))
    content = zstandard.compress(text) if name.endswith("zst") else gzip.compress(text)
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=name):
        read_all(tmp_path)


def test_a_file_that_changed_since_it_was_planned_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")
    [piece] = find_files([str(tmp_path)], "data.path")
    (tmp_path / "a.txt").write_text("after")
    with pytest.raises(DataError, match="changed during preparation"):
        list(read_records(piece, READING, hashlib.sha256()))


def test_a_parquet_input_with_an_extension_type_is_refused(tmp_path: Path) -> None:
    boxes = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))
    pq.write_table(pa.table({"text": ["a"], "id": boxes}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="extension type"):
        plan_units(config(tmp_path, validation=plain(ValidationConfig, group_column="id")), 1)


def test_a_single_file_holds_nothing_out_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines("x"))
    with pytest.raises(DataError) as error:
        plan_units(config(tmp_path), 1)
    for way in ("provide more files", "data.validation.group_column", "data.validation.path"):
        assert way in str(error.value)


def test_whole_files_are_held_out_and_adding_one_moves_no_other(tmp_path: Path) -> None:
    changes = {"validation": plain(ValidationConfig, fraction=0.3)}
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text("x")
    before = {p.name: p.split for unit in plan_units(config(tmp_path, **changes), 1) for p in unit}
    (tmp_path / "new.txt").write_text("x")
    after = {p.name: p.split for unit in plan_units(config(tmp_path, **changes), 1) for p in unit}
    assert 4 <= list(before.values()).count("validation") <= 20
    assert before.items() <= after.items()


def test_groups_stay_together_across_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [json.dumps({"text": f"{name}{i}", "site": f"s{i % 9}"}) for i in range(90)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    reading = DocumentParser("text", "site", 0.5, 1)
    units = plan_units(config(tmp_path, validation=plain(ValidationConfig, 0.5, "site")), 1)
    sides: dict[int, set[str]] = {}
    for piece in (piece for unit in units for piece in unit):
        assert piece.split == BY_RECORD
        for record in read_records(piece, reading, hashlib.sha256()):
            assert isinstance(record, Document)
            sides.setdefault(int(record.text[1:]) % 9, set()).add(record.split)
    assert all(len(side) == 1 for side in sides.values())
    assert {side for both in sides.values() for side in both} == {"train", "validation"}


def test_a_held_out_set_of_ones_own(tmp_path: Path) -> None:
    for name in ("train", "held"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    own = plain(ValidationConfig, path=(str(tmp_path / "held"),))
    units = plan_units(config(tmp_path / "train", validation=own), 1)
    assert [(p.name, p.split) for unit in units for p in unit] == [
        ("train/a.txt", "train"),
        ("held/a.txt", "validation"),
    ]
    with pytest.raises(DataError, match="must not be trained on"):
        plan_units(config(tmp_path, validation=own), 1)
