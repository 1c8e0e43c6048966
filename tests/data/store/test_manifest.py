"""The manifest's tables: opened by need, shared by a machine's processes, and damage refused."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from data.prepared_factory import write_prepared
from raymill.data.store import tables
from raymill.data.store.manifest import (
    InputDigest,
    PreparedData,
    Shard,
    Split,
    load_prepared,
    read_manifest,
    write_manifest,
)
from raymill.data.store.shards import read_row_group
from raymill.data.store.tables import Table
from raymill.durable import canonical_json, sha256_text
from raymill.errors import DataError


def shard(number: int) -> Shard:
    sha256 = sha256_text(str(number))
    return Shard(f"train/{number:05d}.parquet", number + 1, 2, 17, 16, 40, 9, sha256, sha256[::-1])


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the machine's copies, of every table, in a folder of the test."""
    monkeypatch.setattr(tables.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(tables, "SMALL_BYTES", 0)
    return tmp_path / f"raymill-tables-{os.getuid()}"


def test_a_table_holds_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BATCH", 3)
    records = [shard(number) for number in range(8)]
    table = Table.of(Shard, iter(records))
    stored = Table.stored(Shard, tmp_path, table.write(tmp_path, "shards.arrow"))
    for one in (table, stored):
        assert list(one) == records
        assert [one[0], one[-1], one[3:5]] == [records[0], records[-1], records[3:5]]
        assert one.column("rows").tolist() == list(range(1, 9))
        assert len(one) == 8
        with pytest.raises(IndexError, match="record 8 of a table of 8"):
            one[8]
    assert table == stored
    split = Split.from_shards(records)
    assert (split.rows, split.tokens, split.predicted_tokens, split.bytes) == (36, 136, 128, 320)


def test_equal_records_have_equal_bytes(tmp_path: Path) -> None:
    """The digest of prepared data doesn't depend on how its table was put together."""
    records = [shard(number) for number in range(40_000)]
    table = Table.of(Shard, records)
    again = Table.stored(Shard, tmp_path, table.write(tmp_path, "one.arrow"))
    assert again.write(tmp_path, "two.arrow").sha256 == table.write(tmp_path, "three.arrow").sha256


def test_a_machine_keeps_one_verified_copy(tmp_path: Path, shared: Path) -> None:
    prepared = write_prepared(tmp_path / "prepared")
    copies = {path.name for path in shared.iterdir()} - {".lock"}
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    assert copies == {split["shards"]["sha256"] for split in manifest["splits"].values()}
    # What was verified stays readable, and one that was torn is replaced.
    copy = shared / manifest["splits"]["train"]["shards"]["sha256"]
    copy.unlink()
    copy.write_bytes(b"torn")
    assert load_prepared(prepared.folder) == prepared
    (prepared.folder / "train.arrow").unlink()
    assert load_prepared(prepared.folder).manifest.splits["train"].shards[0].rows == 22
    # An unused copy goes when another one is made.
    os.utime(copy, (0, 0))
    write_prepared(tmp_path / "other", shard_rows=(5,))
    assert not copy.exists()


@pytest.mark.parametrize("how", ["open to others", "not a folder"])
def test_a_folder_that_nobody_vouches_for_is_not_used(
    tmp_path: Path, shared: Path, how: str
) -> None:
    if how == "not a folder":
        shared.write_text("")
    else:
        shared.mkdir()
        shared.chmod(0o777)
    assert write_prepared(tmp_path / "prepared").manifest.splits["train"].rows == 32
    assert shared.is_file() or not list(shared.iterdir())


@pytest.mark.parametrize("large", [False, True])
def test_a_damaged_table_is_refused(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    prepared = write_prepared(tmp_path / "prepared")
    path = prepared.folder / "train.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for copy in shared.iterdir():
        copy.unlink()
    if not large:
        monkeypatch.setattr(tables, "SMALL_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"train\.arrow: expected sha256 [0-9a-f]{12}, found"):
        load_prepared(prepared.folder)
    path.unlink()
    with pytest.raises(DataError, match=r"train\.arrow is missing"):
        load_prepared(prepared.folder)


def test_inputs_are_opened_only_by_who_asks(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "prepared")
    sources = [InputDigest(f"{number}.txt", 0, 9, sha256_text(str(number))) for number in range(5)]
    written = write_manifest(prepared.folder, replace(prepared.manifest, inputs=sources))
    assert list(read_manifest(prepared.folder).inputs) == sources == list(written.inputs)
    (prepared.folder / "inputs.arrow").unlink()
    manifest = load_prepared(prepared.folder).manifest
    assert len(manifest.inputs) == 5
    with pytest.raises(DataError, match=r"inputs\.arrow is missing"):
        list(manifest.inputs)


def first_version(prepared: PreparedData) -> None:
    """Write the manifest as format version 1 had it: all records in `manifest.json`."""
    path = prepared.folder / "manifest.json"
    tree = json.loads(path.read_text())
    del tree["digest"], tree["tokenizer_sha256"]
    tree["format_version"] = 1
    for name, split in prepared.manifest.splits.items():
        tree["splits"][name]["shards"] = [asdict(shard) for shard in split.shards]
    tree["inputs"] = [asdict(entry) for entry in prepared.manifest.inputs]
    path.write_text(canonical_json({**tree, "digest": sha256_text(canonical_json(tree))}))
    for name in ("train", "validation", "inputs"):
        (prepared.folder / f"{name}.arrow").unlink()


def test_the_first_version_is_read(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "prepared")
    first_version(prepared)
    again = load_prepared(prepared.folder)
    assert again.manifest.splits == prepared.manifest.splits
    assert list(again.manifest.inputs) == list(prepared.manifest.inputs)
    assert again.manifest.format_version == 1
    last = again.manifest.splits["train"].shards[-1]
    assert len(read_row_group(again.shard_path(last), last, 0, "uint16")) == 1


def test_a_tokenizer_that_was_laid_out_anew_is_the_same(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "prepared")
    path = prepared.tokenizer_folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    assert load_prepared(prepared.folder) == prepared
