"""Declared sources are read by priority, each in its own way; another file leaves their plan as it is."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data.corpus.corpus_factory import CLEANING, corpus_job, write_records
from data.in_process import one_by_one, without_ray
from raymill.config import load
from raymill.data import cluster_tasks
from raymill.data.corpus.prepare import prepare_corpus
from raymill.data.sources import source_plan
from raymill.data.sources.documents import Document, DocumentParser
from raymill.data.sources.format import Bad
from raymill.data.sources.inputs import InputRange, Source, Unit
from raymill.data.sources.planning import plan_units
from raymill.data.sources.records import read_records
from raymill.data.sources.registry import DECLARABLE, format_named, kind_by_ending
from raymill.data.sources.source_plan import plan_sources
from raymill.data.sources.spool import Spool
from raymill.data.sources.stable_units import stable_units
from raymill.data.store.location import corpus_folder
from raymill.data.text.prepare import prepare_with_ray
from raymill.errors import ConfigError, DataError
from raymill.schema.data_sections import DataConfig, ValidationConfig
from sections import plain

READING = DocumentParser("text", None, 0.5, 1)


def declared(sources: dict[str, dict[str, Any]], **changes: Any) -> DataConfig:
    return plain(DataConfig, name="d", source="files", path=None, sources=sources, **changes)


def documents(units: Any) -> list[Document]:
    found = []
    for span in (span for unit in units for span in unit):
        for record in read_records(span, READING, hashlib.sha256()):
            assert isinstance(record, Document), record
            found.append(record)
    return found


def test_sources_are_read_by_priority_each_in_its_own_way(tmp_path: Path) -> None:
    for name in ("web", "books", "tables"):
        (tmp_path / name).mkdir()
    line = {"body": "a page", "href": "https://a.example", "text": "not this"}
    (tmp_path / "web" / "a.ndjson.gz").write_bytes(gzip.compress(json.dumps(line).encode()))
    (tmp_path / "web" / "b.jsonl").write_text(json.dumps(line))
    (tmp_path / "books" / "one.rst.zst").write_bytes(zstandard.compress(b"a book"))
    (tmp_path / "books" / "LICENSE").write_text("another")
    table = pa.table({"text": ["x", "y"], "url": ["u:x", None], "language": ["de", "fr"]})
    pq.write_table(table, tmp_path / "tables" / "t.parquet")
    data = declared(
        {
            "books": {"path": [str(tmp_path / "books")], "format": "text", "endings": ["*"], "language": "en"},
            "web": {
                "path": [str(tmp_path / "web")], "format": "jsonl", "endings": ["ndjson"],
                "text_column": "body", "url_column": "href",
            },
            "tables": {"path": [str(tmp_path / "tables")]},
        }
    )  # fmt: skip
    units = plan_sources(data, 1, split=False)
    assert [span.name for unit in units for span in unit] == [
        "books/books/LICENSE", "books/books/one.rst.zst", "web/web/a.ndjson.gz", "tables/tables/t.parquet",
    ]  # fmt: skip
    found = [(one.source, one.text, one.url, one.language) for one in documents(units)]
    assert found == [
        ("books", "another", "", "en"),
        ("books", "a book", "", "en"),
        ("web", "a page", "https://a.example", ""),
        ("tables", "x", "u:x", "de"),
        ("tables", "y", "", "fr"),
    ]


def test_a_record_carries_its_place(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in ("é", "b", "c" * 50)]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    pq.write_table(pa.table({"text": ["é", "b", "c"]}), tmp_path / "c.parquet", row_group_size=2)
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbfplain")
    data = declared({"s": {"path": [str(tmp_path)]}}, shard_input_bytes=20)
    for span in (span for unit in plan_sources(data, 1, split=False) for span in unit):
        content = (tmp_path / Path(span.path).name).read_bytes()
        content = gzip.decompress(content) if span.format.endswith("gz") else content
        for record in read_records(span, READING, hashlib.sha256()):
            place = record.place
            raw = content[place.offset : place.offset + place.length]
            if span.format == "parquet":
                assert place.length == 1 and record.text == ["é", "b", "c"][place.offset]
                raw = record.text.encode()
            elif span.format == "text":
                assert raw.decode("utf-8-sig") == record.text
            else:
                assert json.loads(raw)["text"] == record.text
            assert place.sha256 == hashlib.sha256(raw).digest()


def ranges(names: list[str], seed: int = 0) -> list[InputRange]:
    def size(name: str) -> int:
        return hashlib.sha256(f"{seed}{name}".encode()).digest()[0] * 4

    return [InputRange(n, n, "text", "train", 0, size(n), size(n), 1) for n in names]


def test_a_new_file_changes_one_unit() -> None:
    names = [f"{number:04d}" for number in range(2000)]
    before: set[Unit] = {*stable_units(ranges(names), 10_000)}
    sizes = [sum(span.length for span in unit) for unit in before]
    assert len(before) > 30 and max(sizes) <= 20_000
    assert 0.6 * 10_000 < sum(sizes) / len(sizes) < 1.4 * 10_000
    changed = []
    for number in range(0, 2000, 13):
        after = stable_units(ranges(sorted([*names, f"{number:04d}x"])), 10_000)
        changed.append(sum(unit not in before for unit in after))
    # A unit that is divided by the new file counts twice.
    assert sum(changed) / len(changed) < 1.5 and sorted(changed)[len(changed) * 9 // 10] <= 2


def test_many_small_files_make_several_units_and_sources_share_none() -> None:
    names = [f"{number}" for number in range(10_000)]
    small = [
        InputRange(n, n, "text", "train", 0, 1, 1, 1, source=Source("ab"[int(n) % 7 > 3]))
        for n in names
    ]
    small.sort(key=lambda span: span.source.name)
    units = [*stable_units(small, 1 << 26)]
    assert max(map(len, units)) <= 4096 and [span for unit in units for span in unit] == small
    assert all(len({span.source.name for span in unit}) == 1 for unit in units)


def test_a_plan_does_not_depend_on_the_order_in_which_tasks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        (tmp_path / f"{number:02d}.jsonl").write_text('{"text": "x"}\n' * (number + 1))
    # A second name of a file, before and after its own.
    (tmp_path / "0.jsonl").symlink_to(tmp_path / "30.jsonl")
    (tmp_path / "99.jsonl").symlink_to(tmp_path / "30.jsonl")
    data = declared({"s": {"path": [str(tmp_path)]}}, shard_input_bytes=1024)
    monkeypatch.setattr(source_plan, "BATCH_FILES", 3)
    here = plan_sources(data, 1)
    assert sorted(span.name for unit in here for span in unit) == [
        f"s/{tmp_path.name}/{number:02d}.jsonl" for number in range(50)
    ]
    assert {span.split for unit in here for span in unit} == {"train", "validation"}
    monkeypatch.setattr(cluster_tasks, "is_connected", lambda: True)
    monkeypatch.setattr(
        cluster_tasks,
        "parallel",
        lambda function, items, **options: reversed([*one_by_one(function, [*items], **options)]),
    )
    assert [*plan_sources(data, 1)] == [*here]
    shared = declared({"s": {"path": [str(tmp_path)]}, "t": {"path": [f"{tmp_path}/*0.jsonl"]}})
    assert all(span.source.name == "s" for unit in plan_sources(shared, 1) for span in unit)


def test_a_held_out_set_must_not_be_trained_on(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}')
    own = plain(ValidationConfig, path=(f"{tmp_path}/b.jsonl",))
    data = declared({"s": {"path": [f"{tmp_path}/a.jsonl"]}}, validation=own)
    assert [(span.name, span.split) for unit in plan_sources(data, 1) for span in unit] == [
        (f"validation:{tmp_path.name}/b.jsonl", "validation"),
        (f"s/{tmp_path.name}/a.jsonl", "train"),
    ]
    with pytest.raises(DataError, match=r"shares 1 file\(s\) .* such as validation:.*/b\.jsonl"):
        plan_sources(declared({"s": {"path": [str(tmp_path)]}}, validation=own), 1)
    with pytest.raises(DataError, match="not two files with text, but 1"):
        plan_sources(declared({"s": {"path": [f"{tmp_path}/a.jsonl"]}}), 1)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["data.sources={web: {paths: x}}"], "data.sources.web.paths: there is no such key"),
        (["data.sources={web: {}}"], "data.sources.web.path: a value is required"),
        (["data.sources.web.path=x", "data.sources.web.format=jsnl"], "did you mean jsonl?"),
        (["data.sources={web: {path: x, endings: [rst]}}"], "say in data.sources.web.format"),
        (["data.sources={web: {path: x}}", "data.path=y"], "data.sources, data.path: give one of"),
        (["data.sources={a/b: {path: x}}"], "data.sources.a/b: a source's name"),
        (["data.sources.web.path=ftp://a/b"], "data.sources.web.path=ftp://a/b: expected files"),
        (["data.path=s3://key:secret@bucket/x"], "data.path=s3://bucket/x: leave out keys"),
        (["data=stdlib", "data.sources={web: {path: x}}"], "data.sources: choose data=files"),
        (["data.sources={web: {path: x, language: 3}}"], "data.sources.web.language=3: expected text"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_named(overrides: list[str], why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("prepare", ["data=files", *overrides])
    assert why in str(caught.value)


def test_formats_are_recognized_by_the_longest_ending() -> None:
    assert kind_by_ending("B.JSONL.ZST") == "jsonl.zst"
    assert kind_by_ending("a.md") == "text" and kind_by_ending("a.txt.gz") == "text.gz"
    assert kind_by_ending("a.parquet") == "parquet" and kind_by_ending("jsonl") is None
    assert all(format_named(name) is form for name, form in DECLARABLE.items())


def test_a_spool_is_a_sequence() -> None:
    spool: Spool[tuple[int, str]] = Spool()
    items = [(number, "x" * number) for number in range(100)]
    for item in items:
        spool.append(item)
    assert [*spool] == items and spool[-1] == items[-1] and spool[3:5] == items[3:5]
    assert pickle.loads(pickle.dumps(spool)) == tuple(items)
    with pytest.raises(IndexError):
        spool[100]


def test_a_bad_row_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", None]}), tmp_path / "a.parquet", row_group_size=1)
    data = declared({"s": {"path": [str(tmp_path)]}}, shard_input_bytes=1)
    spans = [span for unit in plan_sources(data, 1, split=False) for span in unit]
    [bad] = read_records(spans[-1], READING, hashlib.sha256())
    assert isinstance(bad, Bad) and bad.where.endswith("a.parquet, row 2")


def test_declared_sources_are_prepared_with_and_without_a_corpus(tmp_path: Path) -> None:
    for name in ("books", "web"):
        write_records(tmp_path / name, files=4, records=6, seed=len(name))
    sources = {name: {"path": [str(tmp_path / name)]} for name in ("web", "books")}
    with without_ray():
        job = corpus_job(
            tmp_path, path=None, sources=sources, cleaning={}, shard_input_bytes=20_000
        )
        plain_text = prepare_with_ray(job, tasks=2)
        assert {entry.path.partition("/")[0] for entry in plain_text.manifest.inputs} == {
            "web",
            "books",
        }
        assert plain_text.manifest.documents == 48
        assert prepare_with_ray(job).manifest == plain_text.manifest
        job = replace(job, data=replace(job.data, cleaning=CLEANING))
        corpus = prepare_corpus(job, plan_units(job.data, job.seed))
    assert [one.source for one in corpus.documents] == sorted(
        (one.source for one in corpus.documents), reverse=True
    )
    assert {*corpus.manifest["facts"]["sources"]} == {"web", "books"}
    assert corpus.store.folder != corpus_folder(
        replace(job.data, sources=dict(reversed(sources.items()))), job.storage.folder
    ), "the order of the sources counts"


def test_a_damaged_file_of_a_declared_source_is_one_bad_record(tmp_path: Path) -> None:
    lines = b"".join(
        json.dumps({"text": hashlib.sha256(bytes([n % 256, n // 256])).hexdigest()}).encode()
        + b"\n"
        for n in range(3000)
    )
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"] * 100}), sink, write_page_checksum=True)
    boxes = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))
    whole = {"a.jsonl": lines, "z.jsonl": lines}
    damaged = {
        "b.jsonl.gz": gzip.compress(lines)[:-2000],
        "c.jsonl.zst": zstandard.compress(lines)[:-2000],
        "d.jsonl.gz": lines,
        "e.parquet": sink.getvalue()[:-20],
        "f.parquet": b"PAR1" + bytes(40) + b"PAR1",
    }
    for name, content in {**whole, **damaged}.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.table({"text": ["a"], "id": boxes}), tmp_path / "g.parquet")
    data = declared({"s": {"path": [str(tmp_path)]}})
    texts, bad = list[str](), dict[str, str]()
    for span in (span for unit in plan_sources(data, 1, split=False) for span in unit):
        digest = hashlib.sha256()
        for record in read_records(span, READING, digest):
            if isinstance(record, Bad):
                bad[Path(record.where).name] = f"{record.cause}: {record.why}"
            elif Path(span.path).name in whole:
                texts.append(record.text)
        assert digest.hexdigest() in (
            hashlib.sha256(Path(span.path).read_bytes()).hexdigest(),
            hashlib.sha256().hexdigest(),
        )
    assert len(texts) == 6000, "nothing around them is lost"
    assert {*bad} == {*damaged, "g.parquet"}
    assert all(why.startswith("damaged: can't be read to its end") for why in bad.values()), bad
    assert "extension type" in bad["g.parquet"]
