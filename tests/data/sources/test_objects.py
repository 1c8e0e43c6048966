"""Objects of a store are inputs as files are: listed, cut, read by ranges, and refused by name."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from raymill.data.sources.documents import Document, DocumentParser
from raymill.data.sources.files import find_files, passed_over
from raymill.data.sources.planning import plan_units
from raymill.data.sources.records import read_records
from raymill.errors import DataError, StorageError
from raymill.schema.data_sections import DataConfig, ValidationConfig
from raymill.storage import bucket_file
from raymill.storage.bucket import Bucket
from sections import plain

READING = DocumentParser("text", None, 0.5, 1)
LINES = b"".join(json.dumps({"text": f"text {number}"}).encode() + b"\n" for number in range(500))


def table() -> bytes:
    sink = io.BytesIO()
    rows = pa.table({"text": [f"row {number}" for number in range(300)]})
    pq.write_table(rows, sink, row_group_size=50, write_page_checksum=True)
    return sink.getvalue()


FILES = {
    "a.jsonl": LINES,
    "b.jsonl.gz": gzip.compress(LINES),
    "sub/c.jsonl.zst": zstandard.compress(LINES),
    "sub/d.parquet": table(),
    "sub/deep/e.txt": b"plain",
    "sub/f.csv": b"no",
    "sub/.g.txt": b"hidden",
    ".h/i.txt": b"hidden",
}


@pytest.fixture
def filled(uri: str, tmp_path: Path) -> str:
    """Return the address of a folder with FILES, which are in `tmp_path/data`, too."""
    bucket = Bucket(uri)
    for name, content in FILES.items():
        bucket.put(f"data/{name}", content)
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return f"{uri}/data"


def texts(path: str, unit_bytes: int) -> list[str]:
    own = plain(ValidationConfig, group_column=None, fraction=0.3)
    data = plain(
        DataConfig, name="d", source="files", path=(path,), shard_input_bytes=unit_bytes, validation=own
    )  # fmt: skip
    found = []
    for span in (span for unit in plan_units(data, 1) for span in unit):
        digest = hashlib.sha256()
        for record in read_records(span, READING, digest):
            assert isinstance(record, Document)
            found.append(f"{record.split}: {record.text}")
    return found


@pytest.mark.parametrize("unit_bytes", [1 << 20, 2000])
def test_objects_are_read_as_files_are(filled: str, tmp_path: Path, unit_bytes: int) -> None:
    assert texts(filled, unit_bytes) == texts(str(tmp_path / "data"), unit_bytes)


@pytest.mark.parametrize(
    "pattern",
    ["", "/", "/**/*.jsonl*", "/*.jsonl", "/sub/*", "/*/c.jsonl.zst", "/sub/**", "/s*/**/*.txt",
     "/a.jsonl", "/.h/*.txt", "/**/[d]*"],
)  # fmt: skip
def test_patterns_lead_to_the_same_objects_as_to_files(
    filled: str, tmp_path: Path, pattern: str
) -> None:
    there, here = (
        [(file.name, file.length) for file in find_files([f"{root}{pattern}"], "data.path")]
        for root in (filled, tmp_path / "data")
    )
    assert there == here != []


def test_what_is_not_read_is_counted_or_named(filled: str) -> None:
    data = plain(DataConfig, name="d", source="files", path=(filled,))
    assert passed_over(data) == {".csv": 1}
    for pattern, why in (("/none/*.txt", "no object matches"), ("/sub/*.csv", "1 files match")):
        with pytest.raises(DataError, match=why):
            find_files([filled + pattern], "data.path")


def test_objects_that_change_are_refused(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [file] = find_files([f"{filled}/a.jsonl"], "data.path")
    bucket, key = bucket_file.object_of(f"{filled}/a.jsonl")
    bucket.put(key, LINES + LINES)
    with pytest.raises(DataError, match=r"a\.jsonl changed during preparation"):
        [*read_records(file, READING, hashlib.sha256())]
    # While it is read, the store itself notices.
    monkeypatch.setattr(bucket_file, "REQUEST_BYTES", 1000)
    with bucket_file.open_object(f"{filled}/a.jsonl") as stream:
        stream.read(10)
        bucket.put(key, LINES)
        with pytest.raises(StorageError, match=r"reading .*a\.jsonl"):
            stream.read()


def test_credentials_that_are_refused_give_one_sentence(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Bucket, key: str) -> None:
        with self._translate_errors(f"looking for {key}"):
            raise PermissionError("403 Forbidden: InvalidAccessKeyId")

    monkeypatch.setattr(Bucket, "find", refuse)
    with pytest.raises(StorageError, match="403 Forbidden") as caught:
        find_files([f"{filled}/a.jsonl"], "data.path")
    assert "\n" not in str(caught.value)
