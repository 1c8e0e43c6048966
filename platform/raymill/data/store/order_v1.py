"""Version 1 of the sample order, for runs that were started on it; see `order.py` for today's.

1. *Source.* A cycle of `PATTERN` slots is divided by weight; each cycle is shuffled by hash.
2. *Epoch and position.* A source's own count, divided by its rows.
3. *Block.* A Feistel permutation of the blocks, new in each epoch.
4. *Row.* Rows are shuffled inside windows of consecutive permuted blocks.

Within a global batch, rows go to ranks by their location: the batch is sorted by row group and cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from raymill.data.store.blocks import Blocks, RowLocations, SourceShape
from raymill.data.store.hashing import Ints, hash_key, mix, random_permutation
from raymill.errors import DataError

PATTERN = 1024


class OrderV1:
    """Endless order of all samples of a run; a `SampleOrder`.

    Raises:
        DataError: a source has no rows, or its weight is too small for one slot of a cycle.
    """

    version = 1

    def __init__(
        self,
        sources: Sequence[SourceShape],
        seed: int,
        window_row_groups: int,
        global_batch: int,
    ) -> None:
        self.sources = tuple(sources)
        self.seed = seed
        self.window_row_groups = window_row_groups
        self.global_batch = global_batch
        self._slots = pattern_slots([source.weight for source in sources])
        for source, slots in zip(self.sources, self._slots, strict=True):
            if not source.rows:
                raise DataError(f"data source {source.name} has no rows")
            if slots == 0:
                raise DataError(
                    f"data source {source.name}: its weight {source.weight:g} is less than half of "
                    f"1/{PATTERN} of all weights, so it would never be drawn"
                )

    @cached_property
    def _layouts(self) -> list[_Layout]:
        return [
            _Layout(source, hash_key(self.seed, 1, index), self.window_row_groups)
            for index, source in enumerate(self.sources)
        ]

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__.copy()
        # Layouts are large and cheap to rebuild, so they don't travel to other processes.
        state.pop("_layouts", None)
        return state

    def locate(self, start: int, count: int) -> RowLocations:
        """Return the locations of samples [start, start + count)."""
        source, position = self._assign(start, count)
        columns = [np.empty(count, dtype=np.int64) for _ in range(4)]
        for index, layout in enumerate(self._layouts):
            samples = np.flatnonzero(source == index)
            if samples.size:
                for column, values in zip(columns, layout.locate(position[samples]), strict=True):
                    column[samples] = values
        return RowLocations(source, *columns)

    def rank_rows(
        self, first_sample: int, steps: int, rank: int, world_size: int
    ) -> tuple[Ints, RowLocations]:
        """Return a rank's global sample ids of `steps` global batches, ascending, and their
        locations; computes those of all ranks."""
        count = steps * self.global_batch
        located = self.locate(first_sample, count)
        sample = np.arange(first_sample, first_sample + count, dtype=np.int64)
        # One rank gets the whole batch, in order.
        if world_size == 1:
            return sample, located
        step = np.repeat(np.arange(steps), self.global_batch)
        # Sorted by step first, then by location: each rank gets neighbors within one global batch.
        by_location = np.lexsort(
            (sample, located.row_group, located.shard, located.source, step)
        ).reshape(steps, self.global_batch)
        own = self.global_batch // world_size
        chosen = np.sort(by_location[:, rank * own : (rank + 1) * own], axis=1).reshape(-1)
        return sample[chosen], located.take(chosen)

    def _assign(self, start: int, count: int) -> tuple[Ints, Ints]:
        """Return each sample's source, and the number of samples that source gave before it."""
        if len(self.sources) == 1:
            return np.zeros(count, dtype=np.int64), np.arange(start, start + count, dtype=np.int64)
        first, last = start // PATTERN, (start + count - 1) // PATTERN
        template = np.repeat(np.arange(len(self.sources)), self._slots)
        source = np.empty((last - first + 1, PATTERN), dtype=np.int64)
        position = np.empty_like(source)
        for row, cycle in enumerate(range(first, last + 1)):
            key = hash_key(self.seed, 2, cycle)
            source[row] = template[random_permutation(PATTERN, key)]
            for index, slots in enumerate(self._slots):
                selected = source[row] == index
                position[row, selected] = cycle * slots + np.arange(slots)
        # Whole cycles were computed; the requested samples are a part of them.
        part = slice(start - first * PATTERN, start - first * PATTERN + count)
        return source.reshape(-1)[part], position.reshape(-1)[part]


class _Layout:
    """Layout of one source: position among its own samples → shard, row group, row."""

    def __init__(self, source: SourceShape, key: np.uint64, window: int) -> None:
        self.blocks = Blocks(source)
        self.key = key
        self.window_rows = window * source.row_group_rows

    def locate(self, position: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """Return (epoch, shard, row group, row) of the source's samples `position`."""
        epoch, in_epoch = np.divmod(position, self.blocks.rows)
        flat = np.empty_like(in_epoch)
        for number in np.unique(epoch):
            selected = epoch == number
            flat[selected] = self._permute(in_epoch[selected], int(number))
        return epoch, *self.blocks.to_shard(flat)

    def _permute(self, position: Ints, epoch: int) -> Ints:
        """Map positions within an epoch to rows of the source, counted block by block."""
        # Each epoch has its own permutation of blocks and of rows.
        key = mix(self.key + np.uint64(epoch))
        window, offset = np.divmod(position, self.window_rows)
        shuffled = np.empty_like(position)
        for number in np.unique(window):
            selected = window == number
            start = int(number) * self.window_rows
            length = min(self.window_rows, self.blocks.rows - start)
            permutation = random_permutation(
                length, mix(key ^ mix(np.uint64(number) + np.uint64(1)))
            )
            shuffled[selected] = start + permutation[offset[selected]]
        block, row = self.blocks.permuted(shuffled, key)
        return block * self.blocks.size + row


def pattern_slots(weights: Sequence[float]) -> list[int]:
    """Divide a cycle's slots by weight, by largest remainder; each count is within one of its
    share."""
    total = sum(weights)
    exact = [weight / total * PATTERN for weight in weights]
    slots = [int(share) for share in exact]
    # Ties go to the lower index, so that the result doesn't depend on the sorting algorithm.
    by_remainder = sorted(range(len(weights)), key=lambda i: (slots[i] - exact[i], i))
    for index in by_remainder[: PATTERN - sum(slots)]:
        slots[index] += 1
    return slots
