"""Hostile inputs: bad records are counted and named, or the input is refused by name; nothing crashes, and no
bad record costs a good one."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from data.hostile import GOOD, INPUTS, KINDS, Input, invalid_text, twice_named
from data.preparer import Preparer, judged
from raymill.data.messages.records import quarantine_path
from raymill.data.sources.documents import DocumentParser
from raymill.data.sources.files import find_files
from raymill.data.sources.format import Bad
from raymill.data.sources.records import read_records
from raymill.data.text.unit import UnitResult
from raymill.errors import DataError

HALF = "a\ud83d"


@pytest.fixture(scope="module")
def preparer(tmp_path_factory: pytest.TempPathFactory) -> Preparer:
    return Preparer(tmp_path_factory.mktemp("hostile"))


# bench/inputs.py tries thousands.
@settings(max_examples=80, derandomize=True, deadline=None, database=None)
@given(INPUTS)
def test_anything_is_used_counted_or_refused(preparer: Preparer, one: Input) -> None:
    judged(preparer, one)


def prepared(preparer: Preparer, kind: str, ending: str, content: bytes) -> UnitResult:
    [result] = preparer.prepare(Input(kind, ending, content))
    return result


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def table(columns: Sequence[Any], names: Sequence[str], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([*columns], names=[*names]), sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("put", "named"),
    [
        ({"src": HALF}, "column 'src' holds half of a surrogate pair"),
        ({"annotator": HALF}, "column 'annotator' holds half of a surrogate pair"),
        ({HALF: 1}, "the name of a column holds half of a surrogate pair"),
        ({"x": [{"y": {HALF: 1}}]}, "column 'x' holds half of a surrogate pair"),
    ],
    ids=["group", "annotator", "column's name", "nested"],
)
def test_half_of_a_surrogate_pair_is_one_bad_record(
    preparer: Preparer, kind: str, put: dict[str, Any], named: str
) -> None:
    good = GOOD[kind][0]
    result = prepared(preparer, kind, "jsonl", lines(good, {**good, **put}, good))
    assert (result.records, result.bad) == (3, 1)
    [example] = result.bad_examples
    assert example.startswith("input/given.jsonl:2: ") and named in example


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "a", "text": "b"}', "the key 'text' stands twice in one object"),
        (b'{"text": "a", "x": {"y": 1, "y": 2}}', "the key 'y' stands twice"),
        (b'{"text": "a", "x": ' + b"[" * 200 + b"]" * 200 + b"}", "nested deeper than 100 levels"),
        (b'{"text": "a", "x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "nested deeper than 100"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "a number has more than 4300 digits"),
        ('{"text": "a"}'.encode("utf-16"), "it begins as UTF-16 does, convert it to UTF-8"),
        (b'{"' + b"\\n\x1b" * 400 + b'": 1}', "not JSON"),
        (json.dumps({"\x1b[2J\n" * 400: 1}).encode(), r"no column 'text' (has \x1b[2J\n"),
    ],
    ids=["twice", "twice, nested", "deep", "deeper", "digits", "UTF-16", "control", "long name"],
)  # fmt: skip
def test_lines_that_no_later_step_could_hold_are_named(
    preparer: Preparer, line: bytes, why: str
) -> None:
    good = lines({"text": "fine", "src": "a"})
    result = prepared(preparer, "text", "jsonl", good + line.replace(b"\n", b" ") + b"\n" + good)
    assert result.bad and result.documents == 2
    assert why in result.bad_examples[0]
    assert all(text.isprintable() and len(text) < 1000 for text in result.bad_examples)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_one_name_are_named(preparer: Preparer, kind: str) -> None:
    good = {"text": "text", "chat": "prompt", "preference": "chosen", "prompts": "prompt"}[kind]
    record = next(record for record in GOOD[kind] if good in record)
    columns = [pa.array([value, value]) for value in record.values()]
    content = table([*columns, columns[0]], [*record, good])
    result = prepared(preparer, kind, "parquet", content)
    assert (result.records, result.bad, result.documents) == (2, 2, 0)
    assert f"given.parquet, rows 0 to 1: 2 columns are named '{good}'" in result.bad_examples[0]
    # Two that nobody reads are in nobody's way; of messages, all columns are read.
    if kind == "text":
        unread = table([*columns, columns[0], columns[0]], [*record, "x", "x"])
        assert prepared(preparer, kind, "parquet", unread).bad == 0


def without_row_groups() -> bytes:
    sink = io.BytesIO()
    pq.ParquetWriter(sink, pa.schema([("text", pa.string())])).close()
    return sink.getvalue()


def empty_stream() -> bytes:
    sink = io.BytesIO()
    pa.ipc.new_stream(sink, pa.schema([("text", pa.string())])).close()
    return sink.getvalue()


@pytest.mark.parametrize(
    ("ending", "content", "why"),
    [
        ("parquet", without_row_groups(), "the table has no rows"),
        ("parquet", table([pa.array([], pa.string())], ["text"]), "the table has no rows"),
        ("parquet", table([], []), "the table has no rows"),
        ("arrow", empty_stream(), "the table has no rows"),
        ("jsonl", b"\n \n", "the file holds no record"),
        ("jsonl.gz", gzip.compress(b""), "the file holds no record"),
    ],
    ids=["no row groups", "no rows", "no columns", "no batches", "blank lines", "compressed nothing"],
)  # fmt: skip
def test_files_that_give_nothing_are_counted(
    preparer: Preparer, ending: str, content: bytes, why: str
) -> None:
    result = prepared(preparer, "text", ending, content)
    assert (result.records, result.bad) == (1, 1)
    assert result.bad_examples[0].startswith("input/given.") and why in result.bad_examples[0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("A mill".encode("utf-16-le"), "full of NUL characters, as UTF-16 is"),
        ("A mill".encode("utf-32-le"), "full of NUL characters"),
        ("A mill".encode("utf-16"), "it begins as UTF-16 does"),
        ("Mühle".encode("latin-1"), "not UTF-8 (invalid start byte)"),
    ],
    ids=["UTF-16, no mark", "UTF-32, no mark", "UTF-16", "Latin-1"],
)
def test_text_in_other_encodings_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    [piece] = find_files([str(tmp_path / "a.txt")], "data.path")
    [bad] = read_records(piece, DocumentParser("text", None, 0.5, 0), hashlib.sha256())
    assert isinstance(bad, Bad) and why in bad.why and bad.where.endswith("/a.txt:1")


def test_values_that_python_cannot_hold_are_named_by_row(preparer: Preparer) -> None:
    group = pa.array(["a", "b", "c"])
    for column, why in (
        (pa.array([1, 10**8, 2], pa.date32()), "row 1: column 'src' holds date32[day], and can't"),
        (invalid_text(), "row 1: column 'src' is not UTF-8"),
        (twice_named(), "row 0: column 'src' holds struct<role: string, role: string>"),
    ):
        result = prepared(preparer, "text", "parquet", table([group, column], ["text", "src"]))
        assert result.records == 3 and result.bad
        assert any(why in example for example in result.bad_examples), result.bad_examples


def test_a_columns_name_that_is_no_text_is_named(preparer: Preparer) -> None:
    content = table([pa.array(["a"])], ["qqqqqq"], store_schema=False)
    with pytest.raises(DataError, match=r"given\.parquet .*the name of a column isn't UTF-8"):
        prepared(preparer, "text", "parquet", content.replace(b"qqqqqq", b"q\xed\xa0\xbdqq"))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema([("qqqqqq", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([["a"]], names=["qqqqqq"]))
    stream = sink.getvalue().replace(b"qqqqqq", b"q\xed\xa0\xbdqq")
    result = prepared(preparer, "text", "arrow", stream)
    assert result.bad == 1 and "the name of a column isn't UTF-8" in result.bad_examples[0]


def test_what_is_quarantined_can_be_read_again(preparer: Preparer) -> None:
    good = GOOD["chat"][0]
    records = [{**good, "src": HALF}, {**good, "weight": float("nan")}, {"x\ud800": "\0"}, [1]]
    prepared(preparer, "chat", "jsonl", lines(*records))
    path = quarantine_path(Path(preparer.settings["chat"].folder), 0)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["where"] for entry in kept] == [f"input/given.jsonl:{n}" for n in (1, 2, 3, 4)]
