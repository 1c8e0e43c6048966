"""Web archives give each page with its place, whatever is damaged around it."""

from __future__ import annotations

import gzip
import hashlib
import io
import time
from pathlib import Path

import pytest
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data.sources.web_ranges import (
    archive_record,
    causes,
    compressed,
    page,
    read,
    read_bytes,
    read_cut,
    sentence_records,
    skipped,
    texts,
    whole_range,
)
from raymill.data.sources.documents import Document

RECORDS = sentence_records(5)
SENTENCES = [f"This is sentence number {n}. This is sentence number {n}." for n in range(5)]


def without(number: int) -> list[str]:
    return SENTENCES[:number] + SENTENCES[number + 1 :]


def damaged(record: bytes, position: int) -> bytes:
    return record[:position] + bytes([record[position] ^ 0xFF]) + record[position + 1 :]


def test_pages_that_warcio_wrote_are_read_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        writer.write_record(writer.create_warcinfo_record("a.warc.gz", {"software": "test"}))
        for number in range(5):
            url = f"https://a.example/{number}"
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], "HTTP/1.0")
            body = io.BytesIO(page(f"This is sentence number {number}."))
            writer.write_record(
                writer.create_warc_record(url, "response", body, http_headers=headers)
            )
            writer.write_record(writer.create_warc_record(url, "request", io.BytesIO(b"GET /")))
    found = read(whole_range(path, "warc.gz"))
    assert texts(found) == SENTENCES
    with path.open("rb") as file:
        archive = ArchiveIterator(file)
        places = [
            (
                record.rec_headers["WARC-Target-URI"],
                archive.get_record_offset(),
                archive.get_record_length(),
            )
            for record in archive
            if record.rec_type == "response" and record.content_stream().read()
        ]
    documents = [record for record in found if isinstance(record, Document)]
    assert [(d.url, d.place.offset, d.place.length) for d in documents] == places
    for document in documents:
        place, content = document.place, path.read_bytes()
        member = gzip.decompress(content[place.offset : place.offset + place.length])
        assert hashlib.sha256(member.removesuffix(b"\r\n\r\n")).digest() == place.sha256


@pytest.mark.parametrize("unit_bytes", [1, 300, 700, 10_000])
def test_a_compressed_archive_is_cut_between_its_members(tmp_path: Path, unit_bytes: int) -> None:
    path = tmp_path / "a.warc.gz"
    path.write_bytes(compressed(RECORDS))
    pieces, found = read_cut(whole_range(path, "warc.gz"), unit_bytes)
    assert texts(found) == SENTENCES
    assert not causes(found)
    assert len(pieces) == {1: 5, 300: 3, 700: 2, 10_000: 1}[unit_bytes]


def test_an_archive_without_compression_or_in_one_member_is_read_whole(tmp_path: Path) -> None:
    content = b"".join(RECORDS)
    for kind, stored in (("warc", content), ("warc.gz", gzip.compress(content))):
        path = tmp_path / f"a.{kind}"
        path.write_bytes(stored)
        pieces, found = read_cut(whole_range(path, kind), 100)
        assert len(pieces) == 1
        assert texts(found) == SENTENCES
    offsets = [record.place.offset for record in read(whole_range(tmp_path / "a.warc", "warc"))]  # type: ignore[union-attr]
    assert [content[offset : offset + 5] for offset in offsets] == [b"WARC/"] * 5


def test_wet_texts_need_no_extraction(tmp_path: Path) -> None:
    record = RECORDS[0].replace(b"response\r\n", b"conversion\r\n", 1)
    body = "Grüße aus dem Archiv".encode()
    head = record.partition(b"Content-Type")[0]
    record = head + b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert texts(read_bytes(tmp_path, gzip.compress(record), "wet.gz")) == ["Grüße aus dem Archiv"]


def test_what_is_no_page_is_counted_by_its_reason(tmp_path: Path) -> None:
    records = [
        archive_record("https://a.example/", page("Not found."), status=404),
        archive_record("https://a.example/i.png", b"\x89PNG", kind="image/png"),
        archive_record("https://a.example/e", b"<html></html>"),
        RECORDS[0],
    ]
    found = read_bytes(tmp_path, compressed(records), "warc.gz")
    assert skipped(found) == ["HTTP status 404", "not HTML", "no main text"]
    assert texts(found) == SENTENCES[:1]


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Encoding: gzip", gzip.compress(page("This is sentence number 0."), mtime=0)),
        # Crawlers undo the encoding and leave the header.
        ("Content-Encoding: gzip", page("This is sentence number 0.")),
        ("Transfer-Encoding: chunked", page("This is sentence number 0.")),
        ("Content-Encoding: unheard-of", page("This is sentence number 0.")),
    ],
)
def test_encodings_are_undone_where_there_are_any(tmp_path: Path, header: str, body: bytes) -> None:
    record = archive_record("https://a.example/", body, header)
    assert texts(read_bytes(tmp_path, gzip.compress(record), "warc.gz")) == SENTENCES[:1]


MEMBERS = [gzip.compress(record) for record in RECORDS]
HOSTILE_MEMBERS = {
    "flipped bits": damaged(MEMBERS[2], 60),
    "wrong checksum": damaged(MEMBERS[2], len(MEMBERS[2]) - 6),
    "cut short": MEMBERS[2][:-40],
    "garbage": b"no gzip member" * 50,
    "no record": gzip.compress(b"a text"),
    "no length": gzip.compress(RECORDS[2].replace(b"Content-Length", b"Content-Lxngth")),
    "too long": gzip.compress(RECORDS[2].replace(b"Content-Length: ", b"Content-Length: 9")),
    "endless header": gzip.compress(b"WARC/1.0\r\n" + b"X: y\r\n" * 50_000),
    "bomb": gzip.compress(RECORDS[2].replace(b"Length: ", b"Length: 9999999") + bytes(1 << 26)),
    "negative": gzip.compress(RECORDS[2].replace(b"Length: ", b"Length: -")),
}


@pytest.mark.parametrize("name", HOSTILE_MEMBERS)
def test_a_damaged_member_costs_itself_only(tmp_path: Path, name: str) -> None:
    content = b"".join([*MEMBERS[:2], HOSTILE_MEMBERS[name], *MEMBERS[3:]])
    started = time.process_time()
    found = read_bytes(tmp_path, content, "warc.gz")
    assert texts(found) == without(2)
    assert causes(found) in (["damaged"], ["page too large"], ["damaged", "damaged"])
    assert time.process_time() - started < 5


HOSTILE_RECORDS = {
    "length leads past another": RECORDS[2].replace(b"Content-Length: ", b"Content-Length: 9"),
    "length leads past all": RECORDS[2].replace(b"Content-Length: ", b"Content-Length: 999999999"),
    "no length": RECORDS[2].replace(b"Content-Length", b"Content-Lxngth"),
    "no header": b"a line of text\r\n" * 20_000,
    "zeros": bytes(300_000),
    "a line without end": b"WARC/1.0\r\nX: " + b"y" * 3_000_000,
}


@pytest.mark.parametrize("name", HOSTILE_RECORDS)
def test_a_damaged_record_costs_itself_only(tmp_path: Path, name: str) -> None:
    content = b"".join([*RECORDS[:2], HOSTILE_RECORDS[name], *RECORDS[3:]])
    found = read_bytes(tmp_path, content, "warc")
    assert texts(found) == without(2)
    assert len(causes(found)) == 1


def test_a_length_that_is_too_short_loses_no_other_record(tmp_path: Path) -> None:
    short = RECORDS[2].replace(b"Content-Length: 1", b"Content-Length: ")
    content = b"".join([*RECORDS[:2], short, *RECORDS[3:]])
    assert set(without(2)) <= set(texts(read_bytes(tmp_path, content, "warc")))


def test_a_file_that_ends_in_a_record_gives_those_before(tmp_path: Path) -> None:
    for kind, content in (("warc.gz", b"".join(MEMBERS)), ("warc", b"".join(RECORDS))):
        found = read_bytes(tmp_path, content[:-60], kind)
        assert texts(found) == SENTENCES[:4]
        assert causes(found) == ["damaged"]


def test_a_page_larger_than_the_limit_is_named(tmp_path: Path) -> None:
    bomb = archive_record(
        "https://a.example/", gzip.compress(bytes(1 << 26)), "Content-Encoding: gzip"
    )
    large = archive_record("https://a.example/", b"<p>" + b"x" * (3 << 20))
    found = read_bytes(tmp_path, compressed([bomb, RECORDS[0], large, RECORDS[1]]), "warc.gz")
    assert texts(found) == SENTENCES[:2]
    assert causes(found) == ["page too large"] * 2
