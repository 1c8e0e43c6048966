"""Documents are shuffled by hash: an external sort that gives what sorting in memory gives."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from data.text.test_prepare import decoded, job, write_texts
from raymill.data.store.lineage import Origin
from raymill.data.store.location import prepared_folder
from raymill.data.store.manifest import Shard, TokenizerIdentity
from raymill.data.store.shards import row_groups
from raymill.data.text import runs as runs_room
from raymill.data.text.encoder import Encoded
from raymill.data.text.prepare import prepare_with_ray, run
from raymill.data.text.runs import RunWriter
from raymill.data.text.shard_packer import RowSettings
from raymill.data.text.shuffle import BucketSettings, buckets_of, pack_bucket

END = 9
TOKENIZER = TokenizerIdentity("f" * 64, 10, END)
Document = tuple[str, list[int]]


def documents(units: int = 3, each: int = 40) -> list[list[Document]]:
    source = np.random.default_rng(4)
    return [
        [
            (f"in/{unit}.txt@{number // 25}", source.integers(0, END, 3 + number % 7).tolist())
            for number in range(each)
        ]
        for unit in range(units)
    ]


def splitmix(value: int) -> int:
    """The reference of Steele, Lea & Flood, in whole numbers."""
    word = (value + 0x9E3779B97F4A7C15) % 2**64
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)


def sorted_in_memory(units: list[list[Document]], seed: int) -> list[list[int]]:
    keyed, numbers = [], dict[str, int]()
    for name, ids in (document for unit in units for document in unit):
        number = numbers[name] = numbers.get(name, -1) + 1
        first = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
        keyed.append((splitmix(int.from_bytes(first, "little") ^ splitmix(number)), ids))
    return [ids for _, ids in sorted(keyed, key=lambda pair: pair[0])]


def shuffled(folder: Path, units: list[list[Document]], shard_bytes: int) -> list[Shard]:
    runs = []
    for number, unit in enumerate(units):
        writer = RunWriter(folder, f"{number:05d}", 7, "uint16")
        for index, (name, ids) in enumerate(unit):
            sizes = np.ones(len(ids), dtype=np.uint32)
            origin = Origin(name, index, len(ids), bytes(32))
            writer.add(name, Encoded(np.array(ids, dtype=np.uint32), sizes), origin)
        runs += writer.finish()
    rows = RowSettings(str(folder), TOKENIZER, 16, 4, "concatenate")
    settings = BucketSettings(rows, str(folder), tuple(runs))
    (folder / "units").mkdir(exist_ok=True)
    packed = [pack_bucket(bucket, settings) for bucket in buckets_of(runs, shard_bytes)]
    return [one.shard for one in packed if one is not None]


def streams(folder: Path, shards: list[Shard]) -> list[list[int]]:
    found = []
    for shard in shards:
        stream: list[int] = []
        for rows in row_groups(folder / shard.path, shard, "uint16"):
            for row, count in zip(rows.tokens, rows.length, strict=True):
                stream += row[1 if stream else 0 : count].tolist()
        ends = np.flatnonzero(np.array(stream) == END)
        found += [stream[a + 1 : b] for a, b in itertools.pairwise(ends)]
    return found


@pytest.mark.parametrize("run_tokens", [50, 1 << 24])
def test_any_number_of_runs_gives_the_order_of_sorting_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_tokens: int
) -> None:
    monkeypatch.setattr(runs_room, "RUN_TOKENS", run_tokens)
    units = documents()
    shards = shuffled(tmp_path, units, shard_bytes=150)
    assert len(shards) == 5, "720 bytes of text"
    assert streams(tmp_path, shards) == sorted_in_memory(units, seed=7)
    runs = len(list((tmp_path / "runs").iterdir()))
    assert runs == 3 if run_tokens > 50 else runs > 10


def test_a_finished_bucket_is_used_again_and_a_damaged_one_written_again(tmp_path: Path) -> None:
    units = documents()
    first = shuffled(tmp_path, units, shard_bytes=150)
    paths = [tmp_path / shard.path for shard in first]
    made = [path.stat().st_ino for path in paths]
    paths[1].write_bytes(b"damaged")
    assert shuffled(tmp_path, units, shard_bytes=150) == first
    assert [path.stat().st_ino == before for path, before in zip(paths, made, strict=True)] == [
        True, False, True, True, True,
    ]  # fmt: skip


@pytest.mark.usefixtures("ray_session")
def test_neighbors_come_from_files_far_apart_and_older_folders_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write_texts(tmp_path / "texts", files=40, words=60)
    in_order = prepare_with_ray(job(tmp_path, shuffle_documents=False))
    train = [texts.index(text) for text in decoded(in_order, "train")]
    assert train == sorted(train)
    # The same folder is found by a job that would shuffle: so it was named before there was a choice.
    assert run(job(tmp_path)).manifest == in_order.manifest
    assert "in the order of the files" in capsys.readouterr().out
    mixed = prepare_with_ray(job(tmp_path, storage="mixed"))
    assert not (mixed.folder / "runs").exists()
    order = [texts.index(text) for text in decoded(mixed, "train")]
    assert sorted(order) == train
    assert np.mean(np.abs(np.diff(order))) > 8, "of independent draws: a third of the files"
    assert decoded(mixed, "validation") == decoded(in_order, "validation")


def test_a_shuffled_folder_has_its_own_name(tmp_path: Path) -> None:
    wanted = job(tmp_path)
    tokenizer, seed = wanted.tokenizer, wanted.seed
    plain = replace(wanted.data, shuffle_documents=False)
    names = {
        cast("str", prepared_folder(data, tokenizer, seed, "root").name)
        for data in (wanted.data, plain)
    }
    assert len(names) == 2
