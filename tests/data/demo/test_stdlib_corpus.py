"""The embedded corpus: large enough, the same every time, and split without leaks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from raymill.data.demo import stdlib_corpus
from raymill.data.demo.stdlib_corpus import TRAINING, CorpusEntry, held_out_families


@pytest.fixture(scope="module")
def corpus() -> list[CorpusEntry]:
    return stdlib_corpus.entries()


def test_it_has_source_documentation_and_topics(corpus: Sequence[CorpusEntry]) -> None:
    sizes = dict.fromkeys(("source", "members", "topic"), 0)
    for entry in corpus:
        sizes[entry.kind] += entry.size
    assert sizes["source"] > 8_000_000
    assert sizes["members"] > 200_000
    assert sizes["topic"] > 200_000
    names = [entry.name for entry in corpus]
    assert names == sorted(set(names))
    assert not any("/test/" in name or "/tests/" in name for name in names)


def test_every_entry_can_be_read_by_name_and_sizes_are_right(corpus: Sequence[CorpusEntry]) -> None:
    for entry in corpus[::7]:
        text = stdlib_corpus.read(entry.name)
        assert text.strip() or entry.size < 10
        if entry.kind != "source":
            assert len(text.encode()) == entry.size


def test_another_process_lists_the_same(corpus: Sequence[CorpusEntry]) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from raymill.data.demo import stdlib_corpus as s\n"
        "sys.unraisablehook = print\n"
        "print(sum(hash((e.size, len(s.read(e.name)))) for e in s.entries() if e.kind != 'source'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *sys.path], capture_output=True, text=True, check=True
    )
    here = sum(
        hash((entry.size, len(stdlib_corpus.read(entry.name))))
        for entry in corpus
        if entry.kind != "source"
    )
    assert int(run.stdout) == here


def test_listing_imports_no_python_module_of_the_corpus() -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from raymill.data.demo import stdlib_corpus as s; s.entries()\n"
        "print({'antigravity', 'this', 'turtle', 'idlelib', 'tkinter'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *sys.path], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"


def test_families_are_held_out_whole_and_documentation_never(corpus: Sequence[CorpusEntry]) -> None:
    total = sum(entry.size for entry in corpus)
    largest = max(
        sum(e.size for e in corpus if e.family == f) for f in held_out_families(corpus, 1.0, 0)
    )
    for seed in range(5):
        held_out = held_out_families(corpus, 0.04, seed)
        size = sum(entry.size for entry in corpus if entry.family in held_out)
        assert 0.04 <= size / total <= 0.04 + largest / total
        assert TRAINING not in held_out
    assert held_out_families(corpus, 0.04, 1) != held_out_families(corpus, 0.04, 2)
    assert all(entry.family == TRAINING for entry in corpus if entry.kind != "source")


def windows(content: bytes) -> NDArray[np.uint64]:
    """A hash of every 48 bytes: pairs of pairs of … bytes."""
    factor = 0x9E3779B97F4A7C15
    hashes = {1: np.frombuffer(content, np.uint8).astype(np.uint64) + np.uint64(1)}
    for width in (1, 2, 4, 8, 16):
        left, right = hashes[width][:-width], hashes[width][width:]
        hashes[2 * width] = left * np.uint64(pow(factor, width, 1 << 64)) + right
    return hashes[32][:-16] * np.uint64(factor) + hashes[16][32:]


def test_little_of_the_held_out_text_occurs_in_training(corpus: Sequence[CorpusEntry]) -> None:
    """Compare windows of 48 bytes (13 tokens are about 45), which don't depend on any tokenizer."""
    texts = [(entry, stdlib_corpus.read(entry.name).encode()) for entry in corpus]
    hashed = [(entry, windows(text)) for entry, text in texts if len(text) > 64]
    for seed in (0, 1234):
        held_out = held_out_families(corpus, 0.04, seed)
        held = np.concatenate([h for entry, h in hashed if entry.family in held_out])
        known = np.sort(np.concatenate([h for e, h in hashed if e.family not in held_out]))
        places = np.minimum(np.searchsorted(known, held), len(known) - 1)
        assert (known[places] == held).mean() < 0.012
