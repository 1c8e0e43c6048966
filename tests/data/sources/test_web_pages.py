"""Pages, books and articles as files: in order, with what they are known by, bounded in what they cost."""

from __future__ import annotations

import bz2
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data.sources.web_ranges import causes, page, read_bytes, read_cut, skipped, texts, whole_range
from raymill.data.sources.documents import Document
from raymill.data.sources.wikitext import plain_text

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OPS/package.opf"/></rootfiles></container>'
)
PACKAGE = (
    '<package xmlns="http://www.idpf.org/2007/opf"><metadata>'
    '<language xmlns="http://purl.org/dc/elements/1.1/">de-DE</language></metadata><manifest>'
    '<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
    '<item id="b" href="b%20two.xhtml" media-type="application/xhtml+xml"/>'
    '<item id="a" href="text/a.xhtml" media-type="application/xhtml+xml"/>'
    '<item id="i" href="i.png" media-type="image/png"/></manifest>'
    '<spine><itemref idref="nav"/><itemref idref="b"/><itemref idref="i"/><itemref idref="a"/></spine>'
    "</package>"
)
CHAPTER = "<html><body><h1>{0}</h1><p>Text of {0}.</p></body></html>"


def book(**changes: str | bytes | None) -> bytes:
    files: dict[str, str | bytes | None] = {
        "META-INF/container.xml": CONTAINER,
        "OPS/package.opf": PACKAGE,
        "OPS/nav.xhtml": CHAPTER.format("contents"),
        "OPS/text/a.xhtml": CHAPTER.format("chapter two"),
        "OPS/b two.xhtml": CHAPTER.format("chapter one"),
        **changes,
    }
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            if content is not None:
                archive.writestr(name, content)
    return stored.getvalue()


def test_a_page_is_a_document(tmp_path: Path) -> None:
    assert texts(read_bytes(tmp_path, page("A sentence."), "html")) == ["A sentence. A sentence."]
    assert skipped(read_bytes(tmp_path, b"<title>only</title>", "htm")) == ["no main text"]
    assert causes(read_bytes(tmp_path, b"<p>" + b"x" * (2 << 20), "html")) == ["page too large"]


def test_a_book_is_its_chapters_in_the_order_of_reading(tmp_path: Path) -> None:
    found = read_bytes(tmp_path, book(), "epub")
    assert [text.split("\n\n")[0::2] for text in texts(found)] == [["chapter one", "chapter two"]]
    assert "contents" not in texts(found)[0]
    assert [record.language for record in found if isinstance(record, Document)] == ["de"]


HOSTILE_BOOKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "no archive": (lambda: b"PK\x03\x04 not really", "damaged"),
    "cut short": (lambda: book()[:-200], "damaged"),
    "a chapter is missing": (lambda: book(**{"OPS/text/a.xhtml": None}), "damaged"),
    "no list of chapters": (lambda: book(**{"META-INF/container.xml": "<a>"}), "damaged"),
    "a bomb": (lambda: book(**{"OPS/text/a.xhtml": b" " * (1 << 28)}), "page too large"),
    "nested": (lambda: book(**{"OPS/text/a.xhtml": b"<div>" * 100_000}), "nested too deeply"),
    "entities": (
        lambda: book(
            **{"OPS/package.opf": '<!DOCTYPE a [<!ENTITY b "c">]>' + PACKAGE.replace("b%20", "&b;")}
        ),
        "damaged",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_BOOKS)
def test_a_book_that_cannot_be_used_is_counted(tmp_path: Path, name: str) -> None:
    written, cause = HOSTILE_BOOKS[name]
    assert causes(read_bytes(tmp_path, written(), "epub")) == [cause]


HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de"><siteinfo>'
    "<base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base><namespaces>"
    '<namespace key="6" case="first-letter">Datei</namespace></namespaces></siteinfo>'
)


def article(title: str, text: str, extra: str = "<ns>0</ns>") -> str:
    return f"  <page><title>{title}</title>{extra}<revision><text>{text}</text></revision></page>\n"


ARTICLES = [article(f"Titel {number}", f"Ein ''Text'' Nummer {number}.") for number in range(6)]
DUMP = [HEAD, "".join(ARTICLES[:2]), "".join(ARTICLES[2:4]), "".join(ARTICLES[4:]), "</mediawiki>"]
WANTED = [f"Ein Text Nummer {number}." for number in range(6)]


def test_articles_of_a_dump_in_many_streams(tmp_path: Path) -> None:
    path = tmp_path / "a.xml.bz2"
    path.write_bytes(b"".join(bz2.compress(part.encode()) for part in DUMP))
    for unit_bytes, count in ((1, 4), (10_000, 1)):
        pieces, found = read_cut(whole_range(path, "xml.bz2"), unit_bytes)
        assert len(pieces) == count
        assert texts(found) == WANTED
        documents = [record for record in found if isinstance(record, Document)]
        assert documents[3].url == "https://de.wikipedia.org/wiki/Titel_3"
        assert documents[3].language == "de"
        place = documents[3].place
        stream = path.read_bytes()[place.offset : place.offset + place.length]
        assert bz2.decompress(stream).decode() == DUMP[2]


def test_articles_that_are_damaged_or_none(tmp_path: Path) -> None:
    others = [
        article("Benutzer:A", "x", "<ns>2</ns>"),
        article("B", "x", '<ns>0</ns><redirect title="C"/>'),
        article("D", "<unclosed>"),
        article("E", "&entity;"),
        article("F", "x" * (2 << 20)),
    ]
    content = "".join([HEAD, *ARTICLES[:3], *others, *ARTICLES[3:], "  <page><title>G"]).encode()
    found = read_bytes(tmp_path, content, "xml")
    assert texts(found) == WANTED
    assert skipped(found) == ["not an article", "redirect"]
    assert causes(found) == ["damaged", "damaged", "page too large", "damaged"]


def test_a_damaged_stream_of_a_dump_costs_itself_only(tmp_path: Path) -> None:
    streams = [bz2.compress(part.encode()) for part in DUMP]
    middle = len(streams[2]) // 2
    streams[2] = streams[2][:middle] + b"\xff\xff" + streams[2][middle + 2 :]
    found = read_bytes(tmp_path, b"".join(streams), "xml.bz2")
    assert texts(found) == WANTED[:2] + WANTED[4:]
    assert causes(found) == ["damaged"]


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''Bold''' and ''italic'' [[link]]s, [[target|shown]].", "Bold and italic links, shown."),
        ("A{{template|x}} b<ref>source</ref> c<!-- no -->.", "A b c."),
        ("[[File:a.jpg|thumb|A [[caption]].]]Text [[Datei:b.png]]end[[Category:C]].", "Text end."),
        ("[[:Category:C|shown]] and [[Star Trek: Discovery]]", "shown and Star Trek: Discovery"),
        ("[https://a.example site] and [https://b.example] and &nbsp;&amp;", "site and  and \xa0&"),
        ("Intro\n== One ==\nText\n== Two ==\n=== Sub ===\nMore\n== Notes ==\n<references/>\n",
         "Intro\n\n One \n\nText\n\n Two \n\n Sub \n\nMore"),
        ("{| class=x\n| cell\n|}\n* item\n* other\n__NOTOC__", "item\n other"),
        ("{{" * 3000 + "text", "{{" * 3000 + "text"),
    ],
)  # fmt: skip
def test_the_text_of_wikitext(wikitext: str, text: str) -> None:
    lines = plain_text(wikitext, ("File", "Datei", "Category")).split("\n")
    assert [line.strip() for line in lines] == [line.strip() for line in text.split("\n")]
