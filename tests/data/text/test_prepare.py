"""Whole preparations on Ray: repeatable, restartable after a kill, and strict about what they accept."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from raymill.data.sources.files import passed_over
from raymill.data.sources.planning import plan_units
from raymill.data.store import shards
from raymill.data.store.location import prepared_folder
from raymill.data.store.manifest import PreparedData, load_prepared
from raymill.data.store.shards import row_groups
from raymill.data.text import tokenizer as room
from raymill.data.text.prepare import describe, job_folder, prepare_with_ray, run
from raymill.data.text.report import announce
from raymill.errors import DataError
from raymill.schema.data_sections import DataConfig, TokenizerConfig, ValidationConfig
from raymill.schema.jobs import PrepareJob
from raymill.schema.sections import ClusterConfig
from raymill.schema.storage import StorageConfig
from sections import plain

EOT = "<|endoftext|>"


def write_texts(folder: Path, files: int, words: int, seed: int = 0) -> list[str]:
    """Text files of pseudo-words, some of more than one byte a character."""
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(seed)
    vocabulary = ["".join(source.choices("abcdeéß漢", k=source.randint(2, 7))) for _ in range(400)]
    texts = [" ".join(source.choices(vocabulary, k=words)) + "\n" for _ in range(files)]
    for index, text in enumerate(texts):
        (folder / f"{index:02d}.txt").write_text(text, encoding="utf-8")
    return texts


def job(tmp_path: Path, *, storage: str = "storage", **data: object) -> PrepareJob:
    settings: dict[str, object] = {
        "name": "tiny",
        "source": "files",
        "path": (str(tmp_path / "texts"),),
        "sequence_length": 32,
        "row_group_rows": 4,
        "shard_input_bytes": 3000,
        "validation": plain(ValidationConfig, fraction=0.25),
    }
    return plain(
        PrepareJob,
        data=plain(DataConfig, **{**settings, **data}),  # type: ignore[arg-type]
        tokenizer=plain(TokenizerConfig, name="bpe", vocab_size=400),
        cluster=plain(ClusterConfig, name="local", address="local"),
        storage=plain(StorageConfig, root=str(tmp_path / storage)),
    )


def decoded(prepared: PreparedData, split: str) -> list[str]:
    """The split's documents, rebuilt from its shards."""
    manifest = prepared.manifest
    tokenizer = room.load(prepared.tokenizer_folder, EOT)
    documents = []
    for shard in manifest.splits[split].shards:
        stream: list[int] = []
        for rows in row_groups(prepared.shard_path(shard), shard, manifest.dtype):
            for row, count in zip(rows.tokens, rows.length, strict=True):
                stream += row[1 if stream else 0 : count].tolist()
        ends = np.flatnonzero(np.array(stream) == manifest.tokenizer.end_of_text_id)
        assert ends[0] == 0
        assert ends[-1] == len(stream) - 1
        documents += [tokenizer.decode(stream[a + 1 : b]) for a, b in pairwise(ends)]
    return documents


@pytest.mark.usefixtures("ray_session")
def test_text_comes_back_and_parallelism_does_not_matter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write_texts(tmp_path / "texts", files=12, words=400)
    (tmp_path / "texts" / "zz.txt").write_text(f"spelt {EOT} is text")
    one = prepare_with_ray(job(tmp_path, storage="one"), tasks=1)
    four = prepare_with_ray(job(tmp_path, storage="four"), tasks=4)
    assert one.manifest.digest == four.manifest.digest
    assert one.manifest == four.manifest

    train, held_out = decoded(one, "train"), decoded(one, "validation")
    assert sorted(train + held_out) == sorted([*texts, f"spelt {EOT} is text"])
    for split, documents in (("train", train), ("validation", held_out)):
        assert one.manifest.splits[split].bytes == sum(len(t.encode()) for t in documents)
    assert len(one.manifest.splits["train"].shards) >= 4
    assert one.manifest.documents == 13
    assert len(one.manifest.inputs) == 13
    assert one.manifest.contamination.n == 13
    assert not list(one.folder.rglob("*.tmp-*"))

    printed = capsys.readouterr().out
    for word in ("documents", "bytes per token", "held out", "13-grams", "bad inputs", "folder"):
        assert word in printed

    # Again: nothing to do. Touched but equal: nothing to do. Other bytes: refused, by name.
    again = run(job(tmp_path, storage="one"))
    assert again.manifest.digest == one.manifest.digest
    assert "Already prepared" in capsys.readouterr().out
    os.utime(tmp_path / "texts" / "03.txt", (1, 1))
    run(job(tmp_path, storage="one"))
    assert "(finished)" in describe(job(tmp_path, storage="one"))
    swapped = texts[4].replace("a", "b")
    (tmp_path / "texts" / "04.txt").write_text(swapped, encoding="utf-8")
    (tmp_path / "texts" / "05.txt").unlink()
    (tmp_path / "texts" / "new.txt").write_text("more", encoding="utf-8")
    with pytest.raises(DataError, match=r"added: texts/new.txt; removed: texts/05.txt.*data\.name"):
        run(job(tmp_path, storage="one"))
    (tmp_path / "texts" / "new.txt").unlink()
    (tmp_path / "texts" / "05.txt").write_text(texts[5], encoding="utf-8")
    with pytest.raises(DataError, match=r"changed: texts/04.txt\)"):
        run(job(tmp_path, storage="one"))


KILLED = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import ray
from test_prepare import job
from raymill.data.text.prepare import prepare_with_ray
ray.init(address={address!r}, log_to_driver=False)
prepare_with_ray(job(Path({folder!r}), shard_input_bytes={shard_input_bytes}), tasks=1)
"""


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_a_killed_preparation_continues_from_its_finished_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    write_texts(tmp_path / "texts", files=40, words=1500)
    wanted = job(tmp_path, shard_input_bytes=10_000)
    folder = job_folder(wanted)
    path = [str(Path(__file__).parent), *sys.path]
    address = ray.get_runtime_context().gcs_address
    script = KILLED.format(
        address=address, path=path, folder=str(tmp_path), shard_input_bytes=10_000
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    driver = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        deadline = time.monotonic() + 120
        while len(list((folder / "units").glob("000*.json"))) < 5:
            assert driver.poll() is None, "the preparation ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert not (folder / "manifest.json").exists()
    with pytest.raises(DataError, match="didn't finish"):
        load_prepared(folder)
    (folder / "validation" / "99999.parquet.tmp-dead").write_text("left behind")

    # A finished shard that was damaged meanwhile is written again.
    sidecar = json.loads((folder / "units" / "00000.json").read_text())
    damaged = folder / sidecar["result"]["facts"]["runs"][0]["path"]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3] ^= 1
    damaged.write_bytes(content)

    continued = prepare_with_ray(wanted)
    printed = capsys.readouterr().out
    assert "units were finished by an earlier try" in printed
    assert int(printed.split(" units were finished")[0].split()[-3]) >= 4
    straight = prepare_with_ray(
        replace(wanted, storage=plain(StorageConfig, str(tmp_path / "straight")))
    )
    assert continued.manifest == straight.manifest
    assert not list(folder.rglob("*.tmp-*"))


@pytest.mark.usefixtures("ray_session")
def test_bad_input_is_tolerated_up_to_the_fraction(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a", "b", "c"):
        rows = [json.dumps({"text": f"{name} {i} word " * 9, "site": i % 7}) for i in range(40)]
        (folder / f"{name}.jsonl").write_text("\n".join([*rows[:20], "{broken", *rows[20:]]))
    by_site = plain(ValidationConfig, fraction=0.3, group_column="site")
    strict = job(tmp_path, validation=by_site, max_bad_fraction=0.01)
    with pytest.raises(DataError) as error:
        prepare_with_ray(strict)
    message = str(error.value)
    assert "3 of 123 records can't be used, more than data.max_bad_fraction=0.01" in message
    for name in ("a", "b", "c"):
        assert f"texts/{name}.jsonl:21: not JSON" in message
    with pytest.raises(DataError, match="didn't finish"):
        load_prepared(job_folder(strict))

    lenient = job(tmp_path, validation=by_site, max_bad_fraction=0.05)
    assert job_folder(lenient) == job_folder(strict)
    manifest = prepare_with_ray(lenient).manifest
    assert manifest.bad_inputs.count == 3
    assert manifest.bad_inputs.examples[0].startswith("texts/a.jsonl:21: not JSON")
    assert manifest.documents == 120
    assert 0 < manifest.splits["validation"].bytes < manifest.splits["train"].bytes


def test_files_that_are_passed_over_are_counted_by_ending(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "texts", 8, 300)
    others = ["a.py", "b.PY", "c/d.py", "e.tar.gz", "Makefile", ".hidden", "held.csv"]
    for name in others:
        path = tmp_path / "texts" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    told = "passing over 6 files (3 .py, 1 without an ending, 1 .csv, 1 .gz)"
    made = job(tmp_path)
    assert told in describe(made)
    announce(tmp_path, plan_units(made.data, 0), passed_over(made.data))
    assert told in capsys.readouterr().out
    for index in range(12):
        (tmp_path / "texts" / f"x.{index:02d}").touch()
    assert "passing over 18 files (3 .py, " in describe(made)
    assert "1 .05, 8 with others)" in describe(made)
    stdlib = job(tmp_path, source="stdlib")
    assert passed_over(stdlib.data) == Counter(), "whose folder isn't read"


@pytest.mark.usefixtures("ray_session")
def test_nothing_held_out_is_noticed_at_the_end_too(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    rows = [json.dumps({"text": f"row {i}", "site": 1}) for i in range(30)]
    (tmp_path / "texts" / "a.jsonl").write_text("\n".join(rows))
    for fraction, message in ((1e-9, "Three solutions"), (1.0, "no usable training text")):
        split = plain(ValidationConfig, fraction=fraction, group_column="site")
        with pytest.raises(DataError, match=message):
            prepare_with_ray(job(tmp_path, validation=split))


@pytest.mark.usefixtures("ray_session")
def test_a_tokenizer_and_a_held_out_set_of_ones_own(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts", files=3, words=200)
    held_out = write_texts(tmp_path / "held", files=1, words=150, seed=7)
    vocabulary = plain(TokenizerConfig, name="own", vocab_size=300)
    room.save(room.train(iter(texts), vocabulary), tmp_path / "own", EOT)
    own = plain(ValidationConfig, path=(str(tmp_path / "held"),))
    wanted = replace(
        job(tmp_path, validation=own),
        tokenizer=plain(TokenizerConfig, name="own", path=str(tmp_path / "own")),
    )
    prepared = prepare_with_ray(wanted)
    assert sorted(decoded(prepared, "train")) == sorted(texts)
    assert decoded(prepared, "validation") == held_out
    assert prepared.manifest.tokenizer == room.identity(room.load(tmp_path / "own", EOT), EOT)

    room.save(room.train(iter(held_out), vocabulary), tmp_path / "own", EOT)
    with pytest.raises(DataError, match="another tokenizer"):
        run(wanted)


@pytest.mark.usefixtures("ray_session")
def test_a_damaged_input_ends_the_preparation_with_its_name(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", files=4, words=50)
    (tmp_path / "texts" / "z.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00 this is no gzip file")
    with pytest.raises(DataError, match=r"z\.jsonl\.gz can't be read to its end"):
        prepare_with_ray(job(tmp_path))


def test_two_writers_of_one_folder_are_kept_apart(tmp_path: Path) -> None:
    import fcntl

    write_texts(tmp_path / "texts", files=4, words=50)
    folder = job_folder(job(tmp_path))
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="Another preparation is writing"):
            prepare_with_ray(job(tmp_path))


def test_the_folder_is_named_by_what_shapes_the_data(tmp_path: Path) -> None:
    base = job(tmp_path)

    def name(**data: object) -> str:
        changed = replace(base.data, **data)  # type: ignore[arg-type]
        return prepared_folder(changed, base.tokenizer, base.seed, "root").name

    assert name() == name(window_row_groups=3, document_mask=True, mixture={"x": 1.0})
    assert name(max_bad_fraction=0.5) == name()
    others = {
        name(sequence_length=64),
        name(shard_input_bytes=7),
        name(validation=plain(ValidationConfig, 0.1)),
    }
    assert len({*others, name()}) == 4
    assert name().startswith("tiny-bpe-")
    assert prepared_folder(base.data, base.tokenizer, 2, "root").name != name()
    assert shards.DIGEST_HEX == 16  # a change of the format needs a new FORMAT_VERSION
