"""Sample order: a pure function from global sample number to row, the only notion of position.

(seed, mixture, number) → (source, epoch, shard, row group, row), in memory that doesn't grow with
the number of rows:

1. *Source and position*, from `mixture.py`: exact shares at every sample.
2. *Row*, from `columns.py`: neighbors come from as many row groups as a global batch has rows of
   the source, and each of these groups is used for as many steps as it has rows.
3. *Rank*. A global batch has as many places as rows, and each rank owns a contiguous part of them.
   The places are dealt to the sources by weight; the row at position p of a source that has h
   places goes to place p mod h of these. A column's rows therefore always go to the same rank. A
   source's number of rows in a batch differs a little from its places: rows in excess go, in a
   fixed order, to the places that stay free. So a rank knows its own rows without computing
   everybody's. With several sources, the places are shuffled, again every `PLACES_S` row groups, so
   that a source doesn't stay with a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from raymill.data.store.blocks import RowLocations, SourceShape
from raymill.data.store.columns import ColumnOrder
from raymill.data.store.hashing import Ints, feistel, hash_key
from raymill.data.store.mixture import Change, Mixture
from raymill.errors import DataError

# Row groups that a place gives before the places are shuffled again. Each time, the groups in use
# are read by another rank, too: 1/32 more reading.
PLACES_S = 32


class SampleOrder(Protocol):
    """Order of all samples of a run, of whatever version."""

    @property
    def version(self) -> int:
        """Version, which a run keeps for its whole life."""

    @property
    def sources(self) -> tuple[SourceShape, ...]:
        """Sources, by number."""

    @property
    def global_batch(self) -> int:
        """Samples of an optimizer step."""

    @property
    def window_row_groups(self) -> int:
        """Row groups of a source in use at once, at least."""

    def locate(self, start: int, count: int) -> RowLocations:
        """Return the locations of samples [start, start + count)."""

    def rank_rows(
        self, first_sample: int, steps: int, rank: int, world_size: int
    ) -> tuple[Ints, RowLocations]:
        """Return a rank's global sample ids of `steps` global batches, ascending, and their
        locations.

        The first batch begins with `first_sample`; each has the same number of rows per rank.
        """


class Order:
    """Endless order of all samples of a run; epochs follow one another per source.

    `window_row_groups` is the least number of row groups of a source that are in use at once, for
    small batches. `changes`: weights from given samples on, instead of those of the sources.

    Raises:
        DataError: a source has no rows, or is never drawn.
    """

    version = 2

    def __init__(
        self,
        sources: Sequence[SourceShape],
        seed: int,
        window_row_groups: int,
        global_batch: int,
        changes: Sequence[Change] = (),
    ) -> None:
        self.sources = tuple(sources)
        self.seed = seed
        self.window_row_groups = window_row_groups
        self.global_batch = global_batch
        own = Change(0, tuple(source.weight for source in self.sources))
        self.changes = (own, *changes)
        for index, source in enumerate(self.sources):
            if not source.rows:
                raise DataError(f"data source {source.name} has no rows")
            if not any(change.weights[index] for change in self.changes):
                raise DataError(f"data source {source.name} has no weight at any time")

    @cached_property
    def mixture(self) -> Mixture:
        """Assignment of samples to sources."""
        limits = [
            None if source.max_epochs is None else int(source.max_epochs * source.rows)
            for source in self.sources
        ]
        return Mixture(self.changes, limits)

    @cached_property
    def _places(self) -> Ints:
        """Places of each source [phases, sources] in a global batch, by largest remainder."""
        return np.array([shares(p.weights, self.global_batch) for p in self.mixture.phases])

    @cached_property
    def _columns(self) -> list[ColumnOrder]:
        return [
            ColumnOrder(source, hash_key(self.seed, 1, index), self._widths(index))
            for index, source in enumerate(self.sources)
        ]

    def _widths(self, index: int) -> list[tuple[int, int]]:
        """Return (position, columns) of a source wherever its number of columns changes."""
        widths = [(0, self.window_row_groups)]
        for phase, places in zip(self.mixture.phases, self._places[:, index].tolist(), strict=True):
            # A multiple of the places, so that a column stays with its place.
            width = places * -(-self.window_row_groups // places) if places else widths[-1][1]
            position = int(phase.before[index])
            if phase.weights[index] and width != widths[-1][1]:
                if widths[-1][0] == position:
                    widths.pop()
                widths.append((position, width))
        return widths

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__.copy()
        # These are large and cheap to rebuild, so they don't travel to other processes.
        for name in ("mixture", "_places", "_columns"):
            state.pop(name, None)
        return state

    def locate(self, start: int, count: int) -> RowLocations:
        """Return the locations of samples [start, start + count)."""
        return self._locate(*self.mixture.assign(np.arange(start, start + count, dtype=np.int64)))

    def _locate(self, source: Ints, position: Ints) -> RowLocations:
        columns = np.empty((4, len(source)), dtype=np.int64)
        for index in np.unique(source).tolist():
            chosen = np.flatnonzero(source == index)
            columns[:, chosen] = self._columns[index].locate(position[chosen])
        return RowLocations(source, *columns)

    def rank_rows(
        self, first_sample: int, steps: int, rank: int, world_size: int
    ) -> tuple[Ints, RowLocations]:
        """Return a rank's global sample ids of `steps` global batches, ascending, and their
        locations.

        The first batch begins with `first_sample`. The cost is that of the rank's own rows, and a
        little per source.
        """
        batch = self.global_batch
        starts = first_sample + batch * np.arange(steps + 1)
        self.mixture.check(int(starts[-1]))
        counts = self.mixture.counts(starts)
        phases = self.mixture.phase_of(starts)
        own = np.arange(batch // world_size) + rank * (batch // world_size)
        source, position = np.empty((2, steps, len(own)), dtype=np.int64)
        period = PLACES_S * max(source.row_group_rows for source in self.sources)
        shuffled, cards = -1, own
        for step in range(steps):
            if len(self.sources) > 1 and shuffled != int(starts[step]) // (batch * period):
                shuffled = int(starts[step]) // (batch * period)
                cards = feistel(own, batch, hash_key(self.seed, 2, shuffled))
            source[step], position[step] = _deal(
                cards, self._places[phases[step]], counts[step], counts[step + 1]
            )
        sample = self.mixture.samples(source.reshape(-1), position.reshape(-1))
        ascending = np.argsort(sample)
        located = self._locate(source.reshape(-1)[ascending], position.reshape(-1)[ascending])
        return sample[ascending], located


def _deal(cards: Ints, places: Ints, first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Return (source, position) of the rows at some places of a batch.

    `cards` are the places' numbers, source after source; source i has `places[i]` of them, and the
    batch has its positions [first[i], last[i]).
    """
    ends = np.cumsum(places)
    source = np.searchsorted(ends, cards, side="right")
    own = places[source]
    turn = (cards - (ends[source] - own) - first[source]) % own
    rows = last - first
    free = turn >= rows[source]
    position = first[source] + turn
    if free.any():
        vacancies, excess = np.maximum(places - rows, 0), np.maximum(rows - places, 0)
        at = source[free]
        number = np.cumsum(vacancies)[at] - vacancies[at] + turn[free] - rows[at]
        filled = np.cumsum(excess)
        source[free] = found = np.searchsorted(filled, number, side="right")
        position[free] = first[found] + places[found] + number - (filled[found] - excess[found])
    return source, position


def shares(weights: Sequence[int], whole: int) -> list[int]:
    """Divide `whole` by integer weights, by largest remainder; ties go to the lower number."""
    total = sum(weights)
    parts = [weight * whole // total for weight in weights]
    by_remainder = sorted(range(len(parts)), key=lambda i: (-(weights[i] * whole % total), i))
    for index in by_remainder[: whole - sum(parts)]:
        parts[index] += 1
    return parts
