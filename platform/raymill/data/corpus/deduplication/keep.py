"""Last stage of documents: a unit's bitmap, and its documents that are in clusters."""

from __future__ import annotations

import numpy as np

from raymill.data.corpus.bitmap import write_bitmap
from raymill.data.corpus.deduplication.components import DocumentPlaces, read_edges
from raymill.data.corpus.deduplication.settings import FOLDER, MEMBER, DeduplicationSettings
from raymill.data.corpus.deduplication.sorted_rows import units_of
from raymill.data.corpus.stages import UnitFiles
from raymill.durable import JsonObject


def keep_unit(
    item: tuple[int, str], settings: DeduplicationSettings, files: UnitFiles
) -> JsonObject:
    """Write a unit's bitmap and its members of clusters, from the stars that a stage left.

    Returns:
        `dropped`: documents that go, by the source of the document that stays instead; `histogram` of
        clusters whose smallest document lies here, by size; `largest` of them as [size, id], or null.
    """
    unit, stage = item
    places = DocumentPlaces(settings, unit, unit + 1)
    cluster = places.ids.copy()
    size = np.zeros(len(cluster), dtype=np.int64)
    for rows in read_edges(stage, settings, files, unit, unit + 1):
        place = places.of(rows["node"])
        inner = rows["other"] < rows["node"]
        cluster[place[inner]] = rows["other"][inner]
        size += np.bincount(place[~inner], minlength=len(size))
    keep = cluster == places.ids
    size[size > 0] += 1
    found = np.flatnonzero(~keep | (size > 0))
    members = np.empty(len(found), dtype=MEMBER)
    members["row"], members["cluster"], members["size"] = found, cluster[found], size[found]
    name = settings.documents[unit].unit
    files.new(f"{FOLDER}/clusters/{name}.bin").write_bytes(members.tobytes())
    write_bitmap(files.new(f"{FOLDER}/keep/{name}.bits"), keep)
    dropped: dict[str, int] = {}
    for other, count in zip(*np.unique(units_of(cluster[~keep]), return_counts=True), strict=True):
        source = settings.documents[int(other)].source
        dropped[source] = dropped.get(source, 0) + int(count)
    sizes, counts = np.unique(size[size > 0], return_counts=True)
    first = int(np.argmax(size)) if len(sizes) else 0
    return {
        "dropped": dropped,
        "histogram": {str(s): int(n) for s, n in zip(sizes, counts, strict=True)},
        "largest": [int(size[first]), int(places.ids[first])] if len(sizes) else None,
    }
