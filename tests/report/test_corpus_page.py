"""The page of a corpus: its figures are those of the manifest, and nothing in it is markup of a document's."""

from __future__ import annotations

from typing import Any

from lxml import html

from raymill.report.corpus import corpus_page
from raymill.report.corpus_samples import SHOWN_CHANGED, SHOWN_REJECTS

STEPS = ("language", "quality")
HOSTILE = "</pre><script>alert(1)</script>"


def counts(documents: int, dropped: dict[str, dict[str, int]]) -> dict[str, Any]:
    kept = documents - sum(sum(reasons.values()) for reasons in dropped.values())
    return {
        "documents": documents,
        "characters": documents * 100,
        "bad": 1,
        "kept": kept,
        "kept_characters": kept * 90,
        "changed": {"quality": 2},
        "dropped": dropped,
        "dropped_characters": {},
        "lengths": {"128": documents},
        "kept_lengths": {"64": 1, "128": kept - 1},
        "languages": {"en": kept - 1, "": 1},
    }


def manifest() -> dict[str, Any]:
    sources = {
        "crawl": counts(
            1000, {"language": {"other": 400, "unknown": 100}, "quality": {"too_few": 50}}
        ),
        HOSTILE: counts(200, {"empty": {"empty": 20}}),
    }
    splits = {
        "train": {"documents": 600, "bytes": 3_000_000},
        "validation": {"documents": 30, "bytes": 9},
    }
    facts = {"bad": 2, "bad_examples": [HOSTILE], "sources": sources, "splits": splits}
    return {"name": "web", "digest": "ab" * 32, "facts": facts}


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    [table] = html.fromstring(page).xpath(f"(//h2[text()='{heading}']/following::table)[1]")
    return [[cell.text_content() for cell in row.xpath("td|th")] for row in table.iterfind(".//tr")]


def test_steps_are_counted_in_their_order() -> None:
    page = corpus_page(manifest(), STEPS, [])
    found = [row[:4] for row in rows(page, "Cleaning, step by step")[1:]]
    assert found == [
        ["emptyempty 20", "1,200", "20", "1.7%"],
        ["languageother 400, unknown 100", "1,180", "500", "42.4%"],
        ["qualitytoo few 50; changed 4", "680", "50", "7.4%"],
        ["kept", "630", "", ""],
    ]


def test_sources_and_languages_are_counted() -> None:
    page = corpus_page(manifest(), STEPS, [])
    table = rows(page, "Sources")
    assert table[0][3:6] == ["empty", "language", "quality"]
    assert table[1] == ["crawl", "1,000", "1", "0.0%", "50.0%", "5.0%", "45.0%", "40.5%"]
    assert table[2][0] == HOSTILE
    languages = rows(page, "Languages of the kept documents")[1:]
    assert [row[:3] for row in languages] == [
        ["en", "628", "99.7%"],
        ["not identified", "2", "0.3%"],
    ]


def test_lengths_before_and_after() -> None:
    table = rows(corpus_page(manifest(), STEPS, []), "Lengths")[1:]
    assert [(row[0], row[1], row[3]) for row in table] == [
        ("≤ 64", "0", "2"),
        ("≤ 128", "1,200", "628"),
    ]


def test_samples_are_chosen_escaped_and_compared() -> None:
    origin = {"source": "crawl", "url": "https://a.b", "file": "a/b"}
    samples = [
        {**origin, "before": f"same\n{HOSTILE}\n", "after": f"same\nnew {n}"} for n in range(20)
    ]
    samples += [
        {**origin, "step": "quality", "reason": "too_few", "text": f"{HOSTILE} {n}"}
        for n in range(9)
    ]
    page = corpus_page(manifest(), STEPS, samples)
    tree = html.fromstring(page)
    assert not tree.xpath("//script")
    assert [mark.text for mark in tree.xpath("//ins")] == [f"new {n}" for n in range(SHOWN_CHANGED)]
    assert tree.xpath("//del")[0].text == HOSTILE
    assert tree.xpath("//h3/text()") == ["quality: too few"]
    assert page.count("https://a.b") == SHOWN_CHANGED + SHOWN_REJECTS


def test_changed_lines_are_shown_with_their_neighbors() -> None:
    before = [f"line {n}" for n in range(60)]
    after = before.copy()
    after[5] = "changed"
    del after[40]
    sample = {"source": "a", "file": "b", "before": "\n".join(before), "after": "\n".join(after)}
    left, right = html.fromstring(corpus_page(manifest(), STEPS, [sample])).xpath("//pre")[:2]
    assert left.text_content() == "line 4\nline 5\nline 6\n⋯\nline 39\nline 40\nline 41\n"
    assert right.text_content() == "line 4\nchanged\nline 6\n⋯\nline 39\nline 41\n"
    assert [mark.text for mark in left.xpath("del")] == ["line 5", "line 40"]
    assert [mark.text for mark in right.xpath("ins")] == ["changed"]


def test_duplicates_are_counted_by_source_and_size() -> None:
    tree = manifest()
    tree["facts"]["duplicates"] = {
        "dropped": {"wiki": {"crawl": 30, "wiki": 5}, "crawl": {"crawl": 7}},
        "histogram": {"2": 20, "3": 4, "4": 1, "9": 1},
    }
    page = corpus_page(tree, STEPS, [])
    found = [row[:3] for row in rows(page, "Duplicates")[1:]]
    assert found == [["crawl", "wiki", "30"], ["crawl", "crawl", "7"], ["wiki", "wiki", "5"]]
    [sizes] = html.fromstring(page).xpath("(//h2[text()='Duplicates']/following::table)[2]")
    cells = [
        [cell.text_content() for cell in row.xpath("td")][:2] for row in sizes.iterfind(".//tr")
    ]
    assert cells[1:] == [["≤ 2", "20"], ["≤ 4", "5"], ["≤ 16", "1"]]


def test_later_stages_are_counted_by_source() -> None:
    tree = manifest()
    assert "Left out after cleaning" not in corpus_page(tree, STEPS, [])
    tree["facts"] |= {
        "duplicates": {"cut": {"crawl": 9}, "emptied": {"crawl": 4}},
        "contaminated": {"dropped": {"crawl": 3, "wiki": 0}},
        "taken_down": {"wiki": 1},
    }
    page = corpus_page(tree, STEPS, [])
    assert rows(page, "Left out after cleaning")[1:] == [
        ["repeated paragraphs alone", "crawl", "4"],
        ["text of evaluation sets", "crawl", "3"],
        ["taken down", "wiki", "1"],
    ]
    assert "<h2>Duplicates</h2>" not in page


def test_the_page_is_one_file_without_network() -> None:
    page = corpus_page(manifest(), STEPS, [])
    assert "src=" not in page
    assert "href=" not in page
    assert "data.keep_rejects=0.001" in page
    assert manifest()["digest"] in page


def test_a_corpus_without_documents_has_a_page() -> None:
    empty = manifest()
    empty["facts"]["sources"] = {}
    empty["facts"]["bad"] = 0
    assert "0 documents read" in corpus_page(empty, (), [])
