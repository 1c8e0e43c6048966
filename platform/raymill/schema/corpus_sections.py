"""Sections about a corpus before it is tokenized: what is left out of it, and how that is decided.

As in `sections.py`, defaults and explanations of the keys stand in `conf/`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeduplicationConfig:
    """Duplicates to leave out: equal documents, equal paragraphs, and documents that are nearly equal.

    Near duplicates are found by MinHash: `bands` × `band_rows` hashes of shingles of `shingle_words` words;
    candidates count from an estimated Jaccard similarity of `min_similarity` on. Paragraphs are lines of at
    least `paragraph_words` words. A task that groups or connects documents takes about `memory_bytes`, by
    which no result changes.
    """

    documents: bool
    paragraphs: bool
    near: bool
    shingle_words: int
    bands: int
    band_rows: int
    min_similarity: float
    max_cluster: int
    paragraph_words: int
    memory_bytes: int

    @property
    def is_on(self) -> bool:
        """Tell whether any duplicates are looked for."""
        return self.documents or self.paragraphs or self.near


@dataclass(frozen=True)
class DecontaminationConfig:
    """Evaluation sets whose n-grams of words the corpus must not have."""

    path: tuple[str, ...] | None
    ngram: int
    max_share: float
