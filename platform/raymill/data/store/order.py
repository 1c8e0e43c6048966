"""Sample order: a pure function from global sample number to row, the only notion of position.

(seed, mixture, number) → (source, epoch, shard, row group, row), in memory that doesn't grow with
the number of rows:

1. *Source.* A cycle of `PATTERN` slots is divided by weight; each cycle is shuffled by hash. So the
   number of samples that a source gave before any position is known without counting.
2. *Epoch and position.* A source's own count, divided by its rows: epochs are counted per source.
3. *Block.* Full row groups are blocks; the shards' partial last groups are put end to end and cut
   into blocks too, so that at most one block of a source is partial. A Feistel permutation of the
   blocks, new in each epoch, needs no table (Black & Rogaway 2002, cycle walking).
4. *Row.* Rows are shuffled inside windows of consecutive permuted blocks. A permutation of single
   rows would read a whole row group for each row; this reads each row group once per window.

Randomness is integer hashing (splitmix64) and never a library's generator: a library may change its
streams between versions, and then a resumed run would see other data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from raymill.errors import DataError

PATTERN = 1024
_ROUNDS = 6

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SourceShape:
    """Shape of a source, as the order needs it: every row group but a shard's last is full."""

    name: str
    weight: float
    row_group_rows: int
    shard_rows: tuple[int, ...]


@dataclass(frozen=True)
class RowLocations:
    """Locations of global samples; arrays of equal length. `row` counts within the row group."""

    source: Ints
    epoch: Ints
    shard: Ints
    row_group: Ints
    row: Ints


class Order:
    """Endless order of all samples of a run; epochs follow one another per source.

    Raises:
        DataError: a source has no rows, or its weight is too small for one slot of a cycle.
    """

    def __init__(self, sources: Sequence[SourceShape], seed: int, window_row_groups: int) -> None:
        self.sources = tuple(sources)
        self.seed = seed
        self.window_row_groups = window_row_groups
        self._slots = pattern_slots([source.weight for source in sources])
        for source, slots in zip(self.sources, self._slots, strict=True):
            if sum(source.shard_rows) == 0:
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
        size = source.row_group_rows
        rows = np.array(source.shard_rows, dtype=np.int64)
        self.size = size
        self.key = key
        self.rows = int(rows.sum())
        # Full groups, and left-over rows, before each shard.
        self.full_before = np.concatenate([[0], np.cumsum(rows // size)])
        self.tail_before = np.concatenate([[0], np.cumsum(rows % size)])
        self.full_blocks = int(self.full_before[-1])
        self.blocks = -(-self.rows // size)
        # Number of rows that the one partial block lacks.
        self.short = self.blocks * size - self.rows
        self.window_rows = window * size

    def locate(self, position: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """Return (epoch, shard, row group, row) of the source's samples `position`."""
        epoch, in_epoch = np.divmod(position, self.rows)
        flat = np.empty_like(in_epoch)
        for number in np.unique(epoch):
            selected = epoch == number
            flat[selected] = self._permute(in_epoch[selected], int(number))
        shard, group, row = self._to_shard(flat)
        return epoch, shard, group, row

    def _permute(self, position: Ints, epoch: int) -> Ints:
        """Map positions within an epoch to rows of the source (full blocks first, then left-over
        rows)."""
        # Each epoch has its own permutation of blocks and of rows.
        key = mix(self.key + np.uint64(epoch))
        window, offset = np.divmod(position, self.window_rows)
        shuffled = np.empty_like(position)
        for number in np.unique(window):
            selected = window == number
            start = int(number) * self.window_rows
            length = min(self.window_rows, self.rows - start)
            permutation = random_permutation(
                length, mix(key ^ mix(np.uint64(number) + np.uint64(1)))
            )
            shuffled[selected] = start + permutation[offset[selected]]
        # Rows behind the partial block move up by the number of rows that it lacks.
        last = self.blocks - 1
        where = int(inverse_feistel(np.array([last]), self.blocks, key)[0]) if self.short else last
        partial_end = (where + 1) * self.size - self.short
        moved = shuffled + np.where(shuffled >= partial_end, self.short, 0)
        slot, row = np.divmod(moved, self.size)
        return feistel(slot, self.blocks, key) * self.size + row

    def _to_shard(self, flat: Ints) -> tuple[Ints, Ints, Ints]:
        block, row = np.divmod(flat, self.size)
        full = block < self.full_blocks
        # Rows behind the full blocks are left-over rows of the shards, end to end.
        tail_row = flat - self.full_blocks * self.size
        shard = np.where(
            full,
            np.searchsorted(self.full_before, block, side="right") - 1,
            np.searchsorted(self.tail_before, tail_row, side="right") - 1,
        )
        # A left-over row lies in the group after the shard's full ones.
        full_groups = self.full_before[shard + 1] - self.full_before[shard]
        group = np.where(full, block - self.full_before[shard], full_groups)
        row = np.where(full, row, tail_row - self.tail_before[shard])
        return shard, group, row


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


def mix(value: Any) -> Any:
    """Apply splitmix64's finalizer (Steele, Lea & Flood 2014): uint64 → uint64, a bijection."""
    with np.errstate(over="ignore"):
        word = np.asarray(value, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return word ^ (word >> np.uint64(31))


def hash_key(*numbers: int) -> np.uint64:
    """Return one 64-bit key from a few integers."""
    key = np.uint64(0)
    for number in numbers:
        key = mix(key ^ mix(np.uint64(number % 2**64)))
    return np.uint64(key)


def random_permutation(length: int, key: np.uint64) -> Ints:
    """Return a permutation of range(length): sorted by hash, ties (hashes are 64 bits) by index."""
    with np.errstate(over="ignore"):
        words = mix(np.arange(length, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95) + key)
    return np.argsort(words, kind="stable").astype(np.int64)


def feistel(values: Ints, size: int, key: np.uint64) -> Ints:
    """Evaluate a permutation of range(size) at `values`, without a table."""
    return _walk(values, size, key, range(_ROUNDS))


def inverse_feistel(values: Ints, size: int, key: np.uint64) -> Ints:
    """Evaluate the inverse of `feistel`."""
    return _walk(values, size, key, range(_ROUNDS - 1, -1, -1))


def _walk(values: Ints, size: int, key: np.uint64, rounds: range) -> Ints:
    """Apply the network on the next even power of two until each value is below `size` again."""
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    out = values.astype(np.uint64)
    outside = np.ones(out.shape, dtype=bool)
    while outside.any():
        out[outside] = _network(out[outside], half, key, rounds)
        outside = out >= np.uint64(size)
    return out.astype(np.int64)


def _network(values: Words, half: int, key: np.uint64, rounds: range) -> Words:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    forward = rounds.step > 0
    for number in rounds:
        round_key = mix(key ^ mix(np.uint64(number + 101)))
        if forward:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        else:
            left, right = right ^ (mix(left ^ round_key) & mask), left
    return (left << np.uint64(half)) | right
