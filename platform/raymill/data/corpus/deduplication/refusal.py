"""Refusal of clusters so large that something else than copying made them, with some of their documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from raymill.data.corpus.deduplication.runner import StageRunner
from raymill.data.corpus.deduplication.settings import MEMBER
from raymill.data.corpus.deduplication.sorted_rows import ROW_BITS
from raymill.data.corpus.documents import read_batches
from raymill.errors import DataError

# Documents that a message names, and how many characters of each.
_NAMED = 8
_CHARACTERS = 60


def refuse_large_clusters(runner: StageRunner, largest: Sequence[tuple[int, int]]) -> None:
    """Raise DataError for the largest cluster, of [size, smallest id] for each unit, if it is too large."""
    limit = runner.settings.config.max_cluster
    size, cluster = max(largest, key=lambda pair: (pair[0], -pair[1]), default=(0, 0))
    if size <= limit:
        return
    count = sum(other > limit for other, _ in largest)
    named = "\n".join(f"  {text}" for text in _members(runner, cluster))
    raise DataError(
        f"{size} documents are near duplicates of each other through chains of others, more than "
        f"data.deduplication.max_cluster={limit} (there are {count} such clusters at least). All but one "
        f"would be left out, for example:\n{named}\n"
        "If they share a template or notice, remove it in data.cleaning; if they are indeed copies, raise "
        "data.deduplication.max_cluster."
    )


def _members(runner: StageRunner, cluster: int) -> Iterator[str]:
    """Describe documents of a cluster."""
    settings, left = runner.settings, _NAMED
    for unit in range(cluster >> int(ROW_BITS), settings.units):
        members = np.fromfile(runner.store.local(settings.stored["clusters"][unit]), dtype=MEMBER)
        rows = members["row"][members["cluster"] == cluster][:left]
        if not len(rows):
            continue
        left -= len(rows)
        wanted, first = {int(row) for row in rows}, 0
        path = runner.store.local(settings.documents[unit].stored)
        for batch in read_batches(path, ["text", "source", "url", "file", "offset"]):
            for row in sorted(wanted & set(range(first, first + batch.num_rows))):
                document = {
                    name: batch.column(name)[row - first].as_py() for name in batch.schema.names
                }
                place = document["url"] or f"{document['file']} at {document['offset']}"
                start = " ".join(document["text"][: 4 * _CHARACTERS].split())[:_CHARACTERS]
                yield f"{document['source']}: {place}: {start}"
            first += batch.num_rows
        if not left:
            return
