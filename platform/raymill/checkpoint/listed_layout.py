"""Layout of checkpoints of format 1, whose index lists the slices of every parameter.

Offsets aren't arithmetic there, so they are read from the header of each file.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymill.checkpoint.layout import ADAMW_MOMENTS, Index, ParameterEntry, Piece, Want
from raymill.checkpoint.verified_files import VerifiedFiles

_ITEM = 4


@dataclass(frozen=True)
class Slice:
    """Elements [start, start + numel) of a flattened parameter and of its moments, in `file`."""

    file: str
    start: int
    numel: int


class ListedLayout:
    """Layout that an index of format 1 lists."""

    def __init__(
        self, entries: Index, slices: Mapping[str, Sequence[Slice]], files: VerifiedFiles
    ) -> None:
        self.entries = entries
        self._slices = slices
        self._files = files
        self._offsets: dict[str, dict[str, int]] = {}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], files: VerifiedFiles) -> ListedLayout:
        """Return the layout that index.json stores.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is none.
        """
        entries = {
            # Checkpoints from before Muon don't record their moments, which are AdamW's.
            name: ParameterEntry(tuple(value["shape"]), tuple(value.get("moments", ADAMW_MOMENTS)))
            for name, value in stored.items()
        }
        slices = {
            name: [Slice(str(file), int(start), int(numel)) for file, start, numel in v["slices"]]
            for name, v in stored.items()
        }
        return cls(entries, slices, files)

    def pieces(self, wants: Sequence[Want]) -> Iterator[tuple[str, list[Piece]]]:
        """Yield (file, pieces in the order of the file) for all that is wanted, each file once."""
        found: dict[str, list[tuple[str, int, memoryview]]] = defaultdict(list)
        for want in wants:
            for part in self._slices[want.name]:
                low, high = max(want.start, part.start), min(want.stop, part.start + part.numel)
                if low < high:
                    tensor = f"{want.kind}/{want.name}"
                    inside = _ITEM * (low - part.start)
                    first, stop = (_ITEM * (element - want.start) for element in (low, high))
                    found[part.file].append((tensor, inside, want.memory[first:stop]))
        for file, members in found.items():
            offsets = self._read_offsets(file)
            try:
                pieces = [(offsets[tensor] + inside, out) for tensor, inside, out in members]
            except KeyError as error:
                raise self._files.damaged(file, f"holds no tensor {error}") from None
            yield file, sorted(pieces, key=lambda piece: piece[0])

    def _read_offsets(self, file: str) -> dict[str, int]:
        """Return where each tensor of a file starts, in bytes."""
        if file not in self._offsets:
            try:
                size = int.from_bytes(self._files.read(file, 0, 8), "little")
                header = json.loads(self._files.read(file, 8, size))
                self._offsets[file] = {
                    name: 8 + size + int(tensor["data_offsets"][0])
                    for name, tensor in header.items()
                    if name != "__metadata__"
                }
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise self._files.damaged(
                    file, f"isn't a safetensors file: {type(error).__name__}: {error}"
                ) from error
        return self._offsets[file]
