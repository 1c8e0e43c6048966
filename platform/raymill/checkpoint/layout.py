"""Layout of a checkpoint: which elements each rank wrote, and where they lie in its file.

Nothing lists them. Each parameter has a partition (`partition.py`), and the file of rank r holds
its parts in a fixed order: by kind (weights, then each moment), then by parameter. So file and byte
offset of any element are arithmetic, and the index that stores a layout doesn't grow with the
number of ranks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from raymill.checkpoint.chunks import table_bytes
from raymill.checkpoint.partition import Partition
from raymill.checkpoint.safetensors_file import FloatArray, data_start_for
from raymill.durable import JsonObject
from raymill.errors import CheckpointError

WEIGHT = "fp32"
ADAMW_MOMENTS = ("exp_avg", "exp_avg_sq")
MUON_MOMENTS = ("momentum_buffer",)
INDEX_FORMAT = 2
_FILE = "rank-{rank:05d}.safetensors"
_ITEM = 4
# Ranks whose offsets are computed at once; memory is this times the number of tensors.
_BLOCK = 64

Ints = npt.NDArray[np.int64]
# Bytes of a file, by their offset, and the memory that they are copied to.
Piece = tuple[int, memoryview]


@dataclass(frozen=True)
class ParameterEntry:
    """Shape of a parameter, and the names of the optimizer moments that are stored with it."""

    shape: tuple[int, ...]
    moments: tuple[str, ...] = ADAMW_MOMENTS

    @property
    def numel(self) -> int:
        """Number of elements of the parameter."""
        return math.prod(self.shape)


Index = Mapping[str, ParameterEntry]


@dataclass(frozen=True)
class Want:
    """Elements of one kind of a parameter from `start` on, to be read into `out`, which is flat."""

    kind: str
    name: str
    out: FloatArray
    start: int = 0

    @property
    def stop(self) -> int:
        """First element after those wanted."""
        return self.start + self.out.size

    @property
    def memory(self) -> memoryview:
        """Bytes of `out`."""
        return self.out.view(np.uint8).data


@dataclass(frozen=True)
class Layout:
    """Layout of the files that `world_size` ranks write.

    `kinds` is their order in every file, whose data starts at byte `data_start`.
    """

    world_size: int
    entries: Index
    partitions: Mapping[str, Partition]
    kinds: tuple[str, ...]
    data_start: int

    @classmethod
    def of(
        cls, world_size: int, parameters: Mapping[str, tuple[ParameterEntry, Partition]]
    ) -> Layout:
        """Return the layout of parameters with these partitions, in their order."""
        entries = {name: entry for name, (entry, _) in parameters.items()}
        moments = (moment for entry in entries.values() for moment in entry.moments)
        names = (
            f"{kind}/{name}" for name, entry in entries.items() for kind in (WEIGHT, *entry.moments)
        )
        return cls(
            world_size,
            entries,
            {name: partition for name, (_, partition) in parameters.items()},
            (WEIGHT, *dict.fromkeys(moments)),
            data_start_for(names),
        )

    @classmethod
    def equal_parts(cls, world_size: int, entries: Index) -> Layout:
        """Return the layout in which each parameter is cut into equal parts, as under ZeRO-3."""
        parameters = {
            name: (entry, Partition(entry.numel, 0, max(1, -(-entry.numel // world_size))))
            for name, entry in entries.items()
        }
        return cls.of(world_size, parameters)

    def check(self) -> None:
        """Check that each element belongs to exactly one rank.

        Parts follow each other without gaps or overlaps, so only their two ends can be wrong.

        Raises:
            CheckpointError: some elements of a parameter belong to no rank.
        """
        for name, part in self.partitions.items():
            numel, end = self.entries[name].numel, self.world_size * part.size
            if part.replicated or part.numel != numel or part.first < 0 or part.size < 1:
                raise CheckpointError(f"parameter {name} of {numel} elements is not cut by {part}")
            if part.first + numel > end:
                raise CheckpointError(
                    f"parameter {name}: the ranks hold {max(0, end - part.first)} of {numel} elements"
                )

    def tensors(self, rank: int) -> Iterator[tuple[str, str, int, int]]:
        """Yield (kind, name, start, numel) of a rank's tensors, in the order of its file."""
        parts = {name: part.range_of(rank) for name, part in self.partitions.items()}
        for kind in self.kinds:
            for name, (start, numel) in parts.items():
                if numel and (kind == WEIGHT or kind in self.entries[name].moments):
                    yield kind, name, start, numel

    def file_sizes(self) -> list[int]:
        """Return the size of every rank's file in bytes."""
        ends = np.zeros(self.world_size + 1, np.int64)
        for name, part in self.partitions.items():
            bounds = np.arange(self.world_size + 1, dtype=np.int64) * part.size - part.first
            ends += np.clip(bounds, 0, part.numel) * (1 + len(self.entries[name].moments))
        contents = (self.data_start + _ITEM * (ends[1:] - ends[:-1])).tolist()
        return [content + table_bytes(content) for content in contents]

    def pieces(self, wants: Sequence[Want]) -> Iterator[tuple[str, list[Piece]]]:
        """Yield (file, pieces in the order of the file) for all that is wanted, each file once."""
        kind_of = {kind: number for number, kind in enumerate(self.kinds)}
        row_of = {name: number for number, name in enumerate(self.partitions)}
        # Blocks of ranks bound the memory for their offsets.
        blocks: dict[int, list[tuple[Want, range]]] = defaultdict(list)
        for want in wants:
            if want.start < want.stop:
                ranks = self.partitions[want.name].ranks_of(want.start, want.stop)
                for block in range(ranks[0] // _BLOCK, ranks[-1] // _BLOCK + 1):
                    blocks[block].append((want, ranks))
        for block, members in sorted(blocks.items(), key=lambda item: item[0]):
            first = min(max(ranks[0], block * _BLOCK) for _, ranks in members)
            last = max(min(ranks[-1], (block + 1) * _BLOCK - 1) for _, ranks in members)
            starts, offsets = self._places(np.arange(first, last + 1))
            found: dict[int, list[Piece]] = defaultdict(list)
            for want, ranks in members:
                row, kind = row_of[want.name], kind_of[want.kind]
                low, high = max(first, ranks[0]), min(last, ranks[-1])
                memory, zero = want.memory, _ITEM * want.start
                columns = slice(low - first, high + 1 - first)
                begins = np.maximum(starts[row, columns], want.start)
                ends = np.minimum(starts[row, low + 1 - first : high + 2 - first], want.stop)
                places = offsets[kind, row, columns] + _ITEM * (begins - starts[row, columns])
                for rank, place, begin, end in zip(
                    range(low, high + 1),
                    places.tolist(),
                    begins.tolist(),
                    ends.tolist(),
                    strict=True,
                ):
                    piece = memory[_ITEM * begin - zero : _ITEM * end - zero]
                    found[rank].append((place, piece))
            for rank, pieces in sorted(found.items()):
                pieces.sort(key=lambda piece: piece[0])
                yield file_of(rank), pieces

    def _places(self, ranks: Ints) -> tuple[Ints, Ints]:
        """Return where parts lie: their first elements [parameter, rank + 1], and their byte offsets
        [kind, parameter, rank] in the files of `ranks`, which are consecutive."""
        first, size, numel = self._numbers
        bounds = np.append(ranks, ranks[-1] + 1) * size - first
        starts = np.clip(bounds, 0, numel)
        counts = self._kept[:, :, None] * np.diff(starts)[None]
        flat = counts.reshape(-1, len(ranks))
        before = np.cumsum(flat, axis=0) - flat
        return starts, self.data_start + _ITEM * before.reshape(counts.shape)

    @cached_property
    def _numbers(self) -> tuple[Ints, Ints, Ints]:
        """First position, part size and elements of each parameter, as columns."""
        parts = self.partitions.values()
        table = np.array([(p.first, p.size, p.numel) for p in parts], np.int64).reshape(-1, 3)
        return table[:, :1], table[:, 1:2], table[:, 2:]

    @cached_property
    def _kept(self) -> Ints:
        """1 where a kind of a parameter is stored, else 0: [kind, parameter]."""
        entries = self.entries.values()
        return np.array(
            [[kind == WEIGHT or kind in e.moments for e in entries] for kind in self.kinds],
            np.int64,
        )

    def to_json(self) -> JsonObject:
        """Return the layout in the form that index.json stores."""
        return {
            "format": INDEX_FORMAT,
            "world_size": self.world_size,
            "file": _FILE,
            "data_start": self.data_start,
            "kinds": list(self.kinds),
            # A list, since their order is that of the files.
            "parameters": [
                {
                    "name": name,
                    "shape": list(entry.shape),
                    "moments": list(entry.moments),
                    "first": self.partitions[name].first,
                    "part": self.partitions[name].size,
                }
                for name, entry in self.entries.items()
            ],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Layout:
        """Return the layout that index.json stores.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is none.
        """
        if stored["format"] != INDEX_FORMAT or stored["file"] != _FILE:
            raise ValueError(f"expected format {INDEX_FORMAT}, found {stored['format']}")
        entries, partitions = {}, {}
        for value in stored["parameters"]:
            name = str(value["name"])
            entry = ParameterEntry(tuple(value["shape"]), tuple(value["moments"]))
            entries[name] = entry
            partitions[name] = Partition(entry.numel, int(value["first"]), int(value["part"]))
        return cls(
            int(stored["world_size"]),
            entries,
            partitions,
            tuple(stored["kinds"]),
            int(stored["data_start"]),
        )


def file_of(rank: int) -> str:
    """Return the name of a rank's file."""
    return _FILE.format(rank=rank)


def merged(layouts: Iterable[Layout]) -> Layout:
    """Return the layout of files that hold the parameters of several layouts of the same ranks."""
    layouts = list(layouts)
    parameters = {
        name: (entry, layout.partitions[name])
        for layout in layouts
        for name, entry in layout.entries.items()
    }
    return Layout.of(layouts[0].world_size, parameters)
