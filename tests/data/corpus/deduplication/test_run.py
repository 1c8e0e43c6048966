"""Duplicates found by all stages together, compared with a brute-force search."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from data.documents_factory import CONFIG, deduplicated, write_documents
from raymill.errors import DataError

Place = tuple[int, int]


def texts_with_copies(seed: int, documents: int = 90, words: int = 120) -> list[str]:
    """Texts of random words, and for some of them near copies of several degrees."""
    chance = random.Random(seed)
    vocabulary = [f"word{number}" for number in range(4000)]
    texts = [" ".join(chance.choices(vocabulary, k=words)) for _ in range(documents)]
    for original in chance.sample(texts, documents // 3):
        for _ in range(chance.randint(1, 3)):
            copy = original.split()
            # Every changed word changes five shingles.
            for place in chance.sample(range(words), chance.choice([0, 1, 1, 40])):
                copy[place] = chance.choice(vocabulary)
            texts.append(" ".join(copy))
    chance.shuffle(texts)
    return texts


def shingles(text: str) -> set[int]:
    """Hashes of the shingles of five words of a text without punctuation."""
    words = text.split()
    return {hash(tuple(words[place : place + 5])) for place in range(len(words) - 4)}


def brute_force(units: list[list[str]], low: float, high: float) -> set[frozenset[Place]]:
    """Clusters of documents with a Jaccard similarity of at least `low`; none lies in [low, high)."""
    sets = {
        (unit, row): shingles(text)
        for unit, texts in enumerate(units)
        for row, text in enumerate(texts)
    }
    clusters = {place: {place} for place in sets}
    for one, two in itertools.combinations(sets, 2):
        similarity = len(sets[one] & sets[two]) / len(sets[one] | sets[two])
        assert not low <= similarity < high, "the test's texts are either near or far"
        if similarity >= high and clusters[one] is not clusters[two]:
            clusters[one] |= clusters[two]
            for place in clusters[two]:
                clusters[place] = clusters[one]
    return {frozenset(members) for members in clusters.values() if len(members) > 1}


def split_in(texts: list[str], count: int) -> list[list[str]]:
    """Distribute texts over units."""
    return [texts[number::count] for number in range(count)]


@pytest.mark.parametrize("memory_bytes", [1 << 28, 2000])
def test_same_clusters_as_brute_force(tmp_path: Path, memory_bytes: int) -> None:
    units = split_in(texts_with_copies(1), 3)
    store, files = write_documents(tmp_path, units)
    # With so little memory there are many ranges of keys, and each unit's edges are contracted alone.
    found = deduplicated(store, files, replace(CONFIG, memory_bytes=memory_bytes))
    expected = brute_force(units, 0.45, 0.8)
    assert found.clusters == expected
    dropped = {place for members in expected for place in sorted(members)[1:]}
    everything = {(unit, row) for unit, texts in enumerate(units) for row in range(len(texts))}
    assert found.kept == everything - dropped
    histogram = found.result.facts["histogram"].items()
    assert sum(int(size) * count for size, count in histogram) == sum(map(len, expected))


def test_equal_documents_only(tmp_path: Path) -> None:
    units = [["One text.", "Another", "  one\tTEXT. "], ["another", "one text"], ["", "one text."]]
    store, files = write_documents(tmp_path, units, ["books", "web", "code"])
    found = deduplicated(store, files, replace(CONFIG, near=False))
    # Case and spaces don't distinguish texts; punctuation does.
    assert found.clusters == {
        frozenset({(0, 0), (0, 2), (2, 1)}),
        frozenset({(0, 1), (1, 0)}),
    }
    assert found.result.facts["dropped"] == {"books": {"books": 1, "code": 1, "web": 1}}
    assert found.result.facts["histogram"] == {"2": 1, "3": 1}


def test_documents_without_words_are_equal_or_different(tmp_path: Path) -> None:
    store, files = write_documents(tmp_path, [["!!!", "???", "", "!!!", "a b"], ["a, b", "a c"]])
    found = deduplicated(store, files)
    assert found.clusters == {frozenset({(0, 0), (0, 3)}), frozenset({(0, 4), (1, 0)})}


def test_large_cluster_is_refused_with_its_documents(tmp_path: Path) -> None:
    texts = [f"{' '.join(f'w{n}' for n in range(60))} {number}" for number in range(12)]
    store, files = write_documents(tmp_path, split_in(texts, 2))
    with pytest.raises(DataError, match=r"12 documents .*\n  web: 0.txt at 0: w0 w1") as caught:
        deduplicated(store, files, replace(CONFIG, max_cluster=11))
    assert str(caught.value).count("\n  web: ") == 8
    assert deduplicated(store, files, replace(CONFIG, max_cluster=12)).kept == {(0, 0)}
