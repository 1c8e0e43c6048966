"""Damage of any kind is refused, with the file and the row group in the message."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.prepared_factory import write_prepared
from raymill.data.store import shards
from raymill.data.store.extension_types import refuse_extension_types
from raymill.data.store.manifest import (
    PreparedData,
    Shard,
    check_shard_sizes,
    load_for_training,
    load_prepared,
    read_manifest,
)
from raymill.data.store.shards import (
    read_footer,
    read_row_group,
    row_groups,
)
from raymill.errors import DataError


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    shards._footers.clear()
    return write_prepared(tmp_path / "prepared")


def first_shard(prepared: PreparedData) -> tuple[Shard, Path]:
    shard = prepared.manifest.splits["train"].shards[0]
    return shard, prepared.shard_path(shard)


def test_what_is_read_adds_up_to_what_the_manifest_says(prepared: PreparedData) -> None:
    for split in prepared.manifest.splits.values():
        for shard in split.shards:
            groups = list(row_groups(prepared.shard_path(shard), shard, "uint16"))
            assert len(groups) == shard.row_groups
            assert all(rows.tokens.shape[1] == 17 for rows in groups)
            assert sum(map(len, groups)) == shard.rows
            assert sum(int(rows.length.sum() - len(rows)) for rows in groups) == (
                shard.predicted_tokens
            )
            assert sum(int(rows.bytes.sum()) for rows in groups) == shard.bytes
            for rows in groups:
                assert not rows.tokens[np.arange(17) >= rows.length[:, None]].any()


def test_the_factory_writes_the_shards_it_was_asked_for(prepared: PreparedData) -> None:
    assert [shard.rows for shard in prepared.manifest.splits["train"].shards] == [22, 9, 1]


def test_a_flipped_byte_is_refused_wherever_it_is(prepared: PreparedData) -> None:
    """Page bodies, page headers and the footer: no position may read as other data."""
    shard, path = first_shard(prepared)
    sound = path.read_bytes()
    expected = [read_row_group(path, shard, group, "uint16") for group in range(shard.row_groups)]
    refused = 0
    for position in range(4, len(sound), 3):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        shards._footers.clear()
        for group, sound_rows in enumerate(expected):
            try:
                found = read_row_group(path, shard, group, "uint16")
            except DataError as error:
                assert str(path) in str(error)  # noqa: PT017 - both outcomes are right, silence is not
                refused += 1
            else:
                for name, values in sound_rows.columns().items():
                    assert (found.columns()[name] == values).all()
    assert refused >= (len(sound) - 4) // 3


def test_a_flipped_byte_in_a_page_names_file_and_row_group(prepared: PreparedData) -> None:
    shard, path = first_shard(prepared)
    read_row_group(path, shard, 2, "uint16")
    column = pq.read_metadata(path).row_group(2).column(0)
    damaged = bytearray(path.read_bytes())
    damaged[column.data_page_offset + column.total_compressed_size - 5] ^= 0x10
    path.write_bytes(damaged)
    read_row_group(path, shard, 1, "uint16")
    with pytest.raises(DataError, match=r"00000\.parquet, row group 2 is damaged .*prepare\.py"):
        read_row_group(path, shard, 2, "uint16")


def test_a_truncated_shard_is_refused(prepared: PreparedData) -> None:
    shard, path = first_shard(prepared)
    os.truncate(path, shard.file_bytes - 10)
    expected = rf"is truncated: expected {shard.file_bytes} bytes, found {shard.file_bytes - 10}"
    # A start asks the storage for no shard: a million of them would take it an hour.
    assert load_prepared(prepared.folder) == prepared
    check_shard_sizes(prepared, limit=2)
    with pytest.raises(DataError, match=expected):
        load_for_training(prepared.folder)
    with pytest.raises(DataError, match=expected):
        read_row_group(path, shard, 0, "uint16")


def test_a_missing_shard_is_refused(prepared: PreparedData) -> None:
    shard, path = first_shard(prepared)
    path.unlink()
    with pytest.raises(DataError, match=r"train/00000\.parquet is missing"):
        check_shard_sizes(prepared)
    with pytest.raises(DataError, match="is missing"):
        read_row_group(path, shard, 0, "uint16")


def test_a_tampered_manifest_is_refused(prepared: PreparedData) -> None:
    path = prepared.folder / "manifest.json"
    path.write_text(path.read_text().replace('"rows":32', '"rows":33'))
    with pytest.raises(DataError, match="changed after it was written"):
        load_prepared(prepared.folder)


def test_footers_are_kept_within_bounds(
    prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, *_ = prepared.manifest.splits["train"].shards
    read_row_group(prepared.shard_path(one), one, 0, "uint16")
    [footer] = shards._footers.values()
    monkeypatch.setattr(shards, "FOOTERS_BYTES", footer.memory)
    read_row_group(prepared.shard_path(two), two, 0, "uint16")
    assert [path for path, _ in shards._footers] == [str(prepared.shard_path(two))]


def test_another_format_version_is_refused(prepared: PreparedData) -> None:
    path = prepared.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(DataError, match="format version 99, this Raymill reads 1 to 2"):
        read_manifest(prepared.folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 1}'])
def test_a_manifest_that_is_no_manifest_is_refused(prepared: PreparedData, content: str) -> None:
    (prepared.folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        load_prepared(prepared.folder)


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="doesn't exist"):
        load_prepared(tmp_path / "nowhere")
    with pytest.raises(DataError, match="didn't finish"):
        load_prepared(tmp_path)


def test_another_tokenizer_is_refused(prepared: PreparedData) -> None:
    path = prepared.tokenizer_folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<filler300>", "<filler_300>"))
    with pytest.raises(DataError, match="isn't the tokenizer that wrote these shards"):
        load_prepared(prepared.folder)


def replaced(shard: Shard, path: Path, table: pa.Table) -> Shard:
    """Write another table in a shard's place, with a manifest entry that vouches for it."""
    pq.write_table(table, path)
    digest = shards.hashlib.sha256(read_footer(path)).hexdigest()
    return dataclasses.replace(shard, footer_sha256=digest, file_bytes=path.stat().st_size)


def test_a_wrong_schema_is_refused(prepared: PreparedData) -> None:
    shard, path = first_shard(prepared)
    shard = replaced(shard, path, pa.table({"tokens": ["text"], "bytes": [4]}))
    with pytest.raises(DataError, match=r"schema \(tokens: string, bytes: int64\), expected"):
        read_row_group(path, shard, 0, "uint16")


def test_a_replaced_shard_is_refused(prepared: PreparedData) -> None:
    shard, path = first_shard(prepared)
    replaced(shard, path, pa.table({"tokens": ["text"], "bytes": [4]}))
    with pytest.raises(DataError, match="is truncated"):
        read_row_group(path, shard, 0, "uint16")
    shard = dataclasses.replace(shard, file_bytes=path.stat().st_size)
    with pytest.raises(DataError, match="the manifest expects"):
        read_row_group(path, shard, 0, "uint16")


def test_extension_types_are_refused_before_arrow_sees_them(prepared: PreparedData) -> None:
    shard, path = first_shard(prepared)
    boxes = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))
    shard = replaced(shard, path, pa.table({"tokens": boxes}))
    with pytest.raises(DataError, match="extension type"):
        refuse_extension_types(path, read_footer(path))
    with pytest.raises(DataError, match="extension type"):
        read_row_group(path, shard, 0, "uint16")


def test_a_row_group_that_does_not_exist(prepared: PreparedData) -> None:
    shard, path = first_shard(prepared)
    with pytest.raises(DataError, match="has row groups 0 to 5, but 6 was requested"):
        read_row_group(path, shard, 6, "uint16")
