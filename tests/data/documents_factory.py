"""Files of documents made of texts, and their deduplication in the process of the test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.in_process import without_ray
from raymill.data.corpus.bitmap import read_bitmap
from raymill.data.corpus.deduplication.run import Deduplication, deduplicate
from raymill.data.corpus.deduplication.settings import MEMBER
from raymill.data.corpus.documents import CorpusDocument, DocumentsFile, DocumentsWriter
from raymill.data.corpus.store import CorpusStore
from raymill.durable import sha256_file
from raymill.schema.corpus_sections import DeduplicationConfig
from sections import NO_DEDUPLICATION

CONFIG = replace(
    NO_DEDUPLICATION, documents=True, near=True, max_cluster=1000, memory_bytes=1 << 28
)


def write_documents(
    folder: Path,
    units: Sequence[Sequence[str]],
    sources: Sequence[str] | None = None,
    urls: Sequence[str] | None = None,
) -> tuple[CorpusStore, list[DocumentsFile]]:
    """Write a file of documents for each list of texts; the n-th unit is of the n-th source,
    the n-th row of a unit has the n-th URL."""
    files = []
    (folder / "documents").mkdir(parents=True)
    for number, texts in enumerate(units):
        source = sources[number] if sources else "web"
        path = f"documents/unit{number:03d}.parquet"
        with DocumentsWriter(folder / path) as writer:
            for row, text in enumerate(texts):
                digest = hashlib.sha256(text.encode()).digest()
                writer.add(
                    CorpusDocument(
                        text,
                        source,
                        urls[row] if urls else "",
                        "en",
                        f"{number}.txt",
                        row,
                        len(text),
                        digest,
                    )
                )
        size, digest_text = (folder / path).stat().st_size, sha256_file(folder / path)
        files.append(
            DocumentsFile(path, len(texts), writer.text_bytes, size, digest_text, source, False)
        )
    return CorpusStore(str(folder), None), files


@dataclass(frozen=True)
class Found:
    """Clusters that a deduplication found, as sets of (unit, row), and the documents that it kept."""

    clusters: set[frozenset[tuple[int, int]]]
    kept: set[tuple[int, int]]
    result: Deduplication


def deduplicated(
    store: CorpusStore, files: Sequence[DocumentsFile], config: DeduplicationConfig = CONFIG
) -> Found:
    """Run the deduplication, one unit of work after the other."""
    with without_ray():
        return found(store, files, deduplicate(store, files, config))


def found(store: CorpusStore, files: Sequence[DocumentsFile], result: Deduplication) -> Found:
    """Read the files of a deduplication."""
    clusters: dict[int, set[tuple[int, int]]] = {}
    kept = set()
    for unit, file in enumerate(files):
        bitmap = result.keep[unit]
        assert bitmap is not None, "only units that are written again have no bitmap"
        keep = read_bitmap(store.local(bitmap), file.rows)
        kept |= {(unit, int(row)) for row in np.flatnonzero(keep)}
        for member in np.fromfile(store.local(result.clusters[unit]), dtype=MEMBER):
            clusters.setdefault(int(member["cluster"]), set()).add((unit, int(member["row"])))
    return Found({frozenset(members) for members in clusters.values()}, kept, result)
