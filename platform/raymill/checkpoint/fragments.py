"""Fragment files: parameters and optimizer state as flat slices that any layout can load.

Each rank writes what it owns, `kind/name` → a one-dimensional fp32 slice, into one safetensors
file. The index maps every parameter to the slices that form it, so that a reader of any world size
and ZeRO stage copies just the elements it needs: no pickle, no conversion, no whole model in
memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raymill.checkpoint.safetensors_file import FloatArray as FloatArray
from raymill.checkpoint.safetensors_file import Throttle as Throttle
from raymill.checkpoint.safetensors_file import write_safetensors
from raymill.durable import JsonObject
from raymill.errors import CheckpointError
from raymill.reading import MISSING, is_file, read_text, retried

WEIGHT = "fp32"
ADAMW_MOMENTS = ("exp_avg", "exp_avg_sq")
MUON_MOMENTS = ("momentum_buffer",)


@dataclass(frozen=True)
class Slice:
    """Elements [start, start + numel) of a flattened parameter and of its moments, stored in
    `file`."""

    file: str
    start: int
    numel: int
    moments: tuple[str, ...] = ADAMW_MOMENTS


@dataclass(frozen=True)
class ParameterEntry:
    """Shape and moments of a parameter, and its slices in order and without gaps."""

    shape: tuple[int, ...]
    slices: tuple[Slice, ...]

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the optimizer moments that are stored with the parameter."""
        return self.slices[0].moments

    @property
    def numel(self) -> int:
        """Number of elements of the parameter."""
        return int(np.prod(self.shape, dtype=np.int64))


Index = Mapping[str, ParameterEntry]


# The state of one rank: (parameter name, start element, kind → flat array).
Fragments = Iterable[tuple[str, int, Mapping[str, FloatArray]]]


def write_fragments(
    directory: Path, file: str, fragments: Fragments, throttle: Throttle | None = None
) -> tuple[dict[str, Slice], int, str]:
    """Write and flush one rank's fragments; return their slices, the file's size and its sha256."""
    arrays: dict[str, FloatArray] = {}
    slices: dict[str, Slice] = {}
    for name, start, values in fragments:
        for kind, array in values.items():
            arrays[f"{kind}/{name}"] = array
        moments = tuple(kind for kind in values if kind != WEIGHT)
        slices[name] = Slice(file, start, values[WEIGHT].size, moments)
    size, sha256 = write_safetensors(directory / file, arrays, throttle)
    return slices, size, sha256


def merge_slices(
    shapes: Mapping[str, Sequence[int]], per_rank: Iterable[Mapping[str, Slice]]
) -> dict[str, ParameterEntry]:
    """Combine the ranks' slices into an index.

    Raises:
        CheckpointError: an element of a parameter is held by no rank, or by two; or the ranks hold
            different moments of one parameter.
    """
    by_parameter: dict[str, list[Slice]] = {name: [] for name in shapes}
    for slices in per_rank:
        for name, piece in slices.items():
            by_parameter[name].append(piece)
    index: dict[str, ParameterEntry] = {}
    for name, pieces in by_parameter.items():
        entry = ParameterEntry(
            tuple(shapes[name]), tuple(sorted(pieces, key=lambda piece: piece.start))
        )
        position = 0
        for piece in entry.slices:
            # Slices are sorted, so a gap or an overlap shows at its first element.
            if piece.start != position:
                raise CheckpointError(
                    f"parameter {name}: expected a slice at element {position}, found {piece.start}"
                )
            position += piece.numel
        if position != entry.numel:
            raise CheckpointError(
                f"parameter {name}: slices cover {position} of {entry.numel} elements"
            )
        if len({piece.moments for piece in entry.slices}) > 1:
            raise CheckpointError(f"parameter {name}: the ranks don't keep the same moments")
        index[name] = entry
    return index


def index_to_json(index: Index) -> JsonObject:
    """Return the index in the form that index.json stores."""
    return {
        name: {
            "shape": list(entry.shape),
            "moments": list(entry.moments),
            "slices": [[piece.file, piece.start, piece.numel] for piece in entry.slices],
        }
        for name, entry in index.items()
    }


def read_index(path: Path) -> dict[str, ParameterEntry]:
    """Read index.json.

    Raises:
        CheckpointError: the file is missing, or isn't an index.
        StorageError: it can't be read.
    """
    try:
        stored = json.loads(read_text(path))
        return {name: _entry(**entry) for name, entry in stored.items()}
    except MISSING:
        raise CheckpointError(f"{path} is missing: the checkpoint isn't whole") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} can't be read as a checkpoint index: {error}") from error


def _entry(
    shape: Sequence[int],
    slices: Sequence[tuple[str, int, int]],
    # Checkpoints from before Muon don't record their moments, which are AdamW's.
    moments: Sequence[str] = ADAMW_MOMENTS,
) -> ParameterEntry:
    return ParameterEntry(
        tuple(shape),
        tuple(Slice(file, start, numel, tuple(moments)) for file, start, numel in slices),
    )


class FragmentReader:
    """Reader of any range of any parameter of a checkpoint; it holds only that range in memory."""

    def __init__(self, directory: Path, index: Index) -> None:
        self.directory = directory
        self.index = index
        self._files: dict[str, Any] = {}

    def _open(self, file: str) -> Any:
        if file not in self._files:
            from safetensors import SafetensorError, safe_open

            path = self.directory / file
            if not is_file(path):
                raise CheckpointError(f"{path} is missing: the checkpoint isn't whole")
            try:
                self._files[file] = retried(
                    path, lambda: safe_open(path, framework="numpy"), parses=True
                )
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path} isn't a safetensors file: {error}") from error
        return self._files[file]

    def read(self, kind: str, name: str, start: int = 0, numel: int | None = None) -> FloatArray:
        """Read elements [start, start + numel) of a parameter's `kind`: "fp32", or one of its
        moments.

        Raises:
            CheckpointError: the checkpoint has no such parameter, kind or range, or lacks a file.
            StorageError: a file can't be read.
        """
        entry = self.index.get(name)
        if entry is None:
            raise CheckpointError(f"{self.directory} holds no parameter {name}")
        if kind not in (WEIGHT, *entry.moments):
            raise CheckpointError(
                f"{self.directory}: parameter {name} has the moments {', '.join(entry.moments)}, and no {kind}"
            )
        stop = entry.numel if numel is None else start + numel
        if not 0 <= start <= stop <= entry.numel:
            raise CheckpointError(
                f"{self.directory}: parameter {name} has {entry.numel} elements, requested "
                f"[{start}, {stop})"
            )
        out = np.empty(stop - start, dtype=np.float32)
        for piece in entry.slices:
            # Only the part of the slice that overlaps the requested range is read.
            low, high = max(start, piece.start), min(stop, piece.start + piece.numel)
            if low < high:
                stored = self._open(piece.file).get_slice(f"{kind}/{name}")
                out[low - start : high - start] = stored[low - piece.start : high - piece.start]
        return out

    def tensor(self, name: str, kind: str = WEIGHT) -> FloatArray:
        """Read a whole parameter in its shape."""
        return self.read(kind, name).reshape(self.index[name].shape)
