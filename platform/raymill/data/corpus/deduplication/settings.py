"""Settings that all stages of a deduplication share, and the files that they leave for each other."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from raymill.data.corpus.deduplication.minhash import Bands, Bytes, estimated_similarity
from raymill.data.corpus.documents import DocumentsFile
from raymill.data.corpus.store import StoredFile
from raymill.data.store.hashing import Words
from raymill.schema.corpus_sections import DeduplicationConfig

FOLDER = "deduplication"
DIGEST_BYTES = 16
# Parts of all keys whose beginnings each file of keys notes; the most that grouping is divided into.
SLICES = 4096

KEY_ROW = np.dtype([("key", "<u8"), ("row", "<u4")])
# `low` < `high` are ids of documents; the file is read by the unit of `high`.
CANDIDATE = np.dtype([("high", "<u8"), ("low", "<u8")])
# An edge stands in both directions.
EDGE = np.dtype([("node", "<u8"), ("other", "<u8")])
LOCAL_EDGE = np.dtype([("low", "<u4"), ("high", "<u4")])
# `size` is 0 except at the cluster's smallest id.
MEMBER = np.dtype([("row", "<u4"), ("cluster", "<u8"), ("size", "<u4")])


@dataclass(frozen=True)
class DeduplicationSettings:
    """Parameters, the documents in the order of their units, and what earlier stages left.

    `stored`: the files of a stage by its name, in the order of its items.
    """

    config: DeduplicationConfig
    documents: tuple[DocumentsFile, ...]
    stored: Mapping[str, tuple[StoredFile, ...]] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.documents)

    @property
    def bands(self) -> Bands:
        """Bands of MinHash; none where only equal documents are removed."""
        config = self.config
        return Bands(config.bands, config.band_rows) if config.near else Bands(0, 0)

    @property
    def signature_bytes(self) -> int:
        """Size of a document's signature: the digest of its text, then the short minima."""
        return DIGEST_BYTES + self.bands.hashes

    def with_files(self, stage: str, files: Sequence[StoredFile]) -> DeduplicationSettings:
        """Return the settings of later stages, which read these files."""
        return replace(self, stored={**self.stored, stage: tuple(files)})

    def are_duplicates(self, left: Bytes, right: Bytes) -> NDArray[np.bool_]:
        """Compare signatures, [pairs, signature_bytes] each."""
        same = np.zeros(len(left), dtype=np.bool_)
        if self.config.documents:
            same |= (left[:, :DIGEST_BYTES] == right[:, :DIGEST_BYTES]).all(axis=1)
        if self.config.near:
            similarity = estimated_similarity(left[:, DIGEST_BYTES:], right[:, DIGEST_BYTES:])
            same |= similarity >= self.config.min_similarity
        return same


def text_digest(text: str) -> bytes:
    """Return the digest of a text in lower case, composed (NFC), with single spaces."""
    lower = text.lower()
    composed = lower if lower.isascii() else unicodedata.normalize("NFC", lower)
    plain = " ".join(composed.split())
    return hashlib.blake2b(
        plain.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES
    ).digest()


def slice_bounds() -> Words:
    """Return the smallest key of each slice."""
    return np.arange(SLICES, dtype=np.uint64) << np.uint64(64 - (SLICES - 1).bit_length())
