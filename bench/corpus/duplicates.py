"""Recall, false positives and speed of the deduplication, against all pairs compared exactly.

    apt-get download debian-handbook && dpkg-deb -x debian-handbook_*.deb handbook
    PYTHONPATH=platform:tests .venv/bin/python bench/corpus/duplicates.py --html handbook

Planted: documents of 200 to 700 random words, each with one copy in which a share of the words is replaced,
so that the pairs' similarities cover 0 to 1. Natural: the HTML pages of a folder as text (resiliparse); the
handbook's translations keep many passages in English. The reference is the exact Jaccard similarity of sets of
5-grams of words, for all pairs, as products of sparse matrices.

*found*: pairs in one cluster; *accepted*: pairs that the check let through by themselves (clusters also have
pairs that are connected by others). Seconds are CPU seconds of one process.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from data.documents_factory import CONFIG, Found, deduplicated, write_documents
from numpy.typing import NDArray
from scipy.sparse import csr_array

from raymill.data.corpus.deduplication.minhash import Bands, band_keys, minima, short_signatures
from raymill.data.corpus.deduplication.minhash import estimated_similarity
from raymill.data.corpus.deduplication.words import hash_words

UNITS = 4
# Pairs of less similarity are looked at by nobody.
LEAST = 0.05
_WORD = re.compile(r"\w+")


def planted_texts(count: int, seed: int = 1) -> list[str]:
    """Return pairs of texts, one after the other, of which the second is a changed copy."""
    chance = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(chance.choices(letters, k=chance.randint(2, 10))) for _ in range(30_000)]
    weights = [1 / (rank + 10) for rank in range(len(vocabulary))]
    texts = []
    for _ in range(count):
        words = chance.choices(vocabulary, weights, k=chance.randint(200, 700))
        # A changed word changes five shingles: J = (1 - p)^5 / (2 - (1 - p)^5).
        similarity = chance.random()
        share = 1 - (2 * similarity / (1 + similarity)) ** 0.2
        copy = [chance.choice(vocabulary) if chance.random() < share else word for word in words]
        texts += [" ".join(words), " ".join(copy)]
    return texts


def html_texts(folder: Path) -> list[str]:
    """Return the text of every HTML page below a folder."""
    from resiliparse.extract.html2text import extract_plain_text

    pages = sorted(folder.rglob("*.html"))
    return [extract_plain_text(page.read_text(errors="replace")) for page in pages]


def exact_pairs(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return all pairs of documents with a similarity of at least LEAST, [pairs, 2], and it."""
    numbers: dict[tuple[str, ...], int] = {}
    columns, starts = [], [0]
    for text in texts:
        words = _WORD.findall(text.lower())
        grams = {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
        columns += [numbers.setdefault(gram, len(numbers)) for gram in grams]
        starts.append(len(columns))
    sizes = np.diff(starts)
    data = np.ones(len(columns), dtype=np.int32)
    matrix = csr_array((data, columns, starts), shape=(len(texts), len(numbers)))
    pairs, similarities = [], []
    for first in range(0, len(texts), 200):
        block = (matrix[first : first + 200] @ matrix.T).tocoo()
        low, high = block.row + first, block.col
        once = low < high
        low, high, both = low[once], high[once], block.data[once]
        similarity = both / (sizes[low] + sizes[high] - both)
        near = similarity >= LEAST
        pairs.append(np.stack([low[near], high[near]], axis=1))
        similarities.append(similarity[near])
    return np.concatenate(pairs).astype(np.int64), np.concatenate(similarities)


def accepted(texts: Sequence[str], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which pairs are candidates that pass the check, without the stages around it."""
    bands = Bands(CONFIG.bands, CONFIG.band_rows)
    parts = [
        hash_words(texts[i : i + 500]).ngrams(CONFIG.shingle_words)
        for i in range(0, len(texts), 500)
    ]
    signatures = np.concatenate([minima(*part, bands.hashes) for part in parts])
    keys, short = band_keys(signatures, bands), short_signatures(signatures)
    low, high = pairs.T
    candidates = (keys[:, low] == keys[:, high]).any(axis=0)
    return candidates & (estimated_similarity(short[low], short[high]) >= CONFIG.min_similarity)


def rates(texts: Sequence[str], found: Found) -> dict[str, float]:
    """Return shares of pairs by their exact similarity."""
    # Texts were distributed over the units in turn.
    cluster = np.arange(len(texts))
    for number, members in enumerate(found.clusters):
        cluster[[row * UNITS + unit for unit, row in members]] = len(texts) + number
    pairs, similarity = exact_pairs(texts)
    together = cluster[pairs[:, 0]] == cluster[pairs[:, 1]]
    alone = accepted(texts, pairs)
    near, far, close = (
        similarity >= 0.8,
        similarity <= 0.5,
        (similarity > 0.4) & (similarity <= 0.5),
    )
    return {
        "documents": len(texts),
        "kept": len(found.kept),
        "pairs_near": int(near.sum()),
        "recall_found": float(together[near].mean()),
        "recall_accepted": float(alone[near].mean()),
        "pairs_far": int(far.sum()),
        "false_accepted": float(alone[far].mean()),
        "false_found": float(together[far].mean()),
        "pairs_from_.4_to_.5": int(close.sum()),
        "false_accepted_from_.4_to_.5": float(alone[close].mean()) if close.any() else 0.0,
    }


def measured(texts: Sequence[str]) -> dict[str, float]:
    """Deduplicate the texts; return the rates and the speed."""
    with tempfile.TemporaryDirectory() as folder:
        units = [texts[number::UNITS] for number in range(UNITS)]
        store, files = write_documents(Path(folder), units)
        began = time.process_time()
        found = deduplicated(store, files, replace(CONFIG, max_cluster=len(texts)))
        seconds = time.process_time() - began
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    speed = {"documents_per_s": len(texts) / seconds, "megabytes_per_s": megabytes / seconds}
    return {**rates(texts, found), **speed, "kilobytes_per_document": 1e3 * megabytes / len(texts)}


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--planted", type=int, default=4000, help="pairs of planted documents")
    parser.add_argument("--html", type=Path, help="folder of HTML pages")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    figures = {"planted": measured(planted_texts(options.planted))}
    if options.html:
        figures["natural"] = measured(html_texts(options.html))
    for name, values in figures.items():
        print(name)
        for key, value in values.items():
            print(
                f"  {key:30} {value:,.4f}" if isinstance(value, float) else f"  {key:30} {value:,}"
            )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
