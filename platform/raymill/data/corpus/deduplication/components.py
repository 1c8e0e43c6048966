"""Fourth stage: clusters, the connected components of the edges.

Where all edges fit in memory, one task computes them with scipy. Otherwise edges are contracted to stars
around the smallest documents, in rounds of two steps (Kiveris et al. 2014, Connected components in MapReduce
and beyond, the alternating algorithm): a *large-star* step connects each document's greater neighbors with
its smallest, a *small-star* step its smaller ones. An item of a step holds two numbers for each document of a
range of units, and streams the edges past, so memory is bounded however large a cluster grows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from raymill.data.corpus.deduplication.settings import EDGE, FOLDER, DeduplicationSettings
from raymill.data.corpus.deduplication.sorted_rows import (
    Rows,
    SortedRows,
    read_partitions,
    rows_of,
    sorted_rows,
    sorted_unique,
    unit_bounds,
    units_of,
)
from raymill.data.corpus.stages import UnitFiles
from raymill.data.store.hashing import Ints, Words
from raymill.durable import JsonObject

# Bytes an edge takes while components are computed: ids in both directions, numbers, scipy's matrix.
WORKING_BYTES = 160
# Bytes a document takes in an item of a step.
_DOCUMENT_BYTES = 32


class EdgeWriter:
    """Writer of edges, each in both directions for the unit of either end."""

    def __init__(self, rows: SortedRows) -> None:
        self._rows = rows

    @property
    def rows(self) -> int:
        """Edges so far, counted twice."""
        return self._rows.rows

    def connect(self, low: Words, high: Words) -> None:
        """Add edges between documents of these ids, pair by pair."""
        both = np.empty(2 * len(low), dtype=EDGE)
        both["node"] = np.concatenate([low, high])
        both["other"] = np.concatenate([high, low])
        self._rows.add(both)


@contextmanager
def write_edges(
    path: Path, settings: DeduplicationSettings, *, forest: bool = True
) -> Iterator[EdgeWriter]:
    """Write edges; with `forest`, no more of them than connect the same documents."""
    with sorted_rows(
        path,
        bounds=unit_bounds(settings.units),
        run_bytes=settings.config.memory_bytes * EDGE.itemsize // WORKING_BYTES,
        compact=_spanning_stars if forest else partial(sorted_unique, fields=("node", "other")),
    ) as rows:
        yield EdgeWriter(rows)


def smallest_connected(low: Words, high: Words) -> tuple[Words, Words]:
    """Return all ids in edges, sorted, and for each the smallest id of its component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ids, numbers = np.unique(np.concatenate([low, high]), return_inverse=True)
    if not len(ids):
        return ids, ids
    ends = numbers.reshape(2, -1)
    ones = np.ones(len(low), dtype=np.bool_)
    graph = coo_array((ones, (ends[0], ends[1])), shape=(len(ids), len(ids)))
    count, component = connected_components(graph, directed=False)
    smallest = np.full(count, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(smallest, component, ids)
    return ids, smallest[component]


def _spanning_stars(edges: Rows) -> Rows:
    once = edges[edges["node"] < edges["other"]]
    ids, smallest = smallest_connected(once["node"], once["other"])
    away = ids != smallest
    both = np.empty(2 * int(away.sum()), dtype=EDGE)
    both["node"] = np.concatenate([ids[away], smallest[away]])
    both["other"] = np.concatenate([smallest[away], ids[away]])
    return sorted_unique(both, ("node", "other"))


def read_edges(
    stage: str, settings: DeduplicationSettings, files: UnitFiles, first: int, end: int
) -> Iterator[Rows]:
    """Yield the edges that a stage left for the documents of units [first, end), in pieces."""
    for file in settings.stored[stage]:
        yield from read_partitions(files, file, EDGE, first, end)


def connect_at_once(stage: str, settings: DeduplicationSettings, files: UnitFiles) -> JsonObject:
    """Write the stars of all edges that a stage left, which fit in memory."""
    path = files.new(f"{FOLDER}/components/all.bin")
    with write_edges(path, settings, forest=False) as writer:
        pieces = [np.zeros(0, dtype=EDGE)]
        for rows in read_edges(stage, settings, files, 0, settings.units):
            pieces.append(rows[rows["node"] < rows["other"]])
        once = np.concatenate(pieces)
        ids, smallest = smallest_connected(once["node"], once["other"])
        away = ids != smallest
        writer.connect(smallest[away], ids[away])
    return {"edges": writer.rows}


@dataclass(frozen=True)
class Contraction:
    """Item of a step of contraction: the documents of units [first, end), and the edges `read` for it."""

    step: str
    kind: Literal["large", "small"]
    first: int
    end: int
    read: str

    @property
    def name(self) -> str:
        """Name of the item in its step."""
        return f"{self.first:05d}-{self.end:05d}"


def unit_ranges(documents: Sequence[int], memory: int) -> list[tuple[int, int]]:
    """Divide the units into ranges, each with as many documents as the memory allows, or one unit."""
    ranges, first, count = [], 0, 0
    for unit, size in enumerate(documents):
        if unit > first and (count + size) * _DOCUMENT_BYTES > memory:
            ranges.append((first, unit))
            first, count = unit, 0
        count += size
    return [*ranges, (first, len(documents))]


def contract(item: Contraction, settings: DeduplicationSettings, files: UnitFiles) -> JsonObject:
    """Write the edges that a step makes of those of its documents; count the changes."""
    places = DocumentPlaces(settings, item.first, item.end)
    smallest = places.ids.copy()
    for rows in read_edges(item.read, settings, files, item.first, item.end):
        np.minimum.at(smallest, places.of(rows["node"]), rows["other"])
    changed = 0
    path = files.new(f"{FOLDER}/{item.step}/{item.name}.bin")
    with write_edges(path, settings, forest=False) as writer:
        for rows in read_edges(item.read, settings, files, item.first, item.end):
            node, other = rows["node"], rows["other"]
            center = smallest[places.of(node)]
            if item.kind == "large":
                greater = other > node
                changed += int(np.count_nonzero(center[greater] != node[greater]))
                writer.connect(center[greater], other[greater])
            else:
                smaller = other < node
                moved = smaller & (other != center)
                changed += int(np.count_nonzero(moved))
                writer.connect(center[smaller], node[smaller])
                writer.connect(center[moved], other[moved])
    return {"edges": writer.rows, "changed": changed}


class DocumentPlaces:
    """Documents of a range of units, as places in an array."""

    def __init__(self, settings: DeduplicationSettings, first: int, end: int) -> None:
        rows_by_unit = [file.rows for file in settings.documents[first:end]]
        sizes = np.array(rows_by_unit, dtype=np.uint64)
        self._first = np.uint64(first)
        self._begins = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(sizes)])
        units = np.repeat(unit_bounds(end)[first:], sizes.astype(np.int64))
        rows = np.arange(int(self._begins[-1]), dtype=np.uint64)
        self.ids = units + rows - np.repeat(self._begins[:-1], sizes.astype(np.int64))

    def of(self, ids: Words) -> Ints:
        """Return the places of ids."""
        places: Words = self._begins[units_of(ids) - self._first] + rows_of(ids)
        return places.astype(np.int64)
