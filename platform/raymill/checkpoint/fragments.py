"""Fragment files: parameters and optimizer state as flat slices that any layout can load.

Each rank writes what it owns, `kind/name` → a one-dimensional fp32 slice, into one safetensors
file. The layout (`layout.py`) tells where each element is, so that a reader of any world size and
ZeRO stage reads just what it needs: no pickle, no conversion, no whole model in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from raymill.checkpoint.chunks import CHUNK_BYTES
from raymill.checkpoint.file_record import FileRecord
from raymill.checkpoint.layout import ADAMW_MOMENTS as ADAMW_MOMENTS
from raymill.checkpoint.layout import MUON_MOMENTS as MUON_MOMENTS
from raymill.checkpoint.layout import WEIGHT as WEIGHT
from raymill.checkpoint.layout import Index as Index
from raymill.checkpoint.layout import Layout, Want, file_of
from raymill.checkpoint.listed_layout import ListedLayout
from raymill.checkpoint.manifest import INDEX_NAME, CheckpointManifest, read_manifest
from raymill.checkpoint.safetensors_file import FloatArray as FloatArray
from raymill.checkpoint.safetensors_file import Throttle as Throttle
from raymill.checkpoint.safetensors_file import write_safetensors
from raymill.checkpoint.verified_files import CheckpointFiles, LocalFiles, VerifiedFiles
from raymill.errors import CheckpointError

# The state of one rank: (parameter name, start element, kind → flat array).
Fragments = Iterable[tuple[str, int, Mapping[str, FloatArray]]]


def write_fragments(
    directory: Path,
    rank: int,
    layout: Layout,
    fragments: Fragments,
    throttle: Throttle | None = None,
) -> FileRecord:
    """Write and flush one rank's fragments, which are those that the layout gives it.

    Raises:
        CheckpointError: the rank has other elements or moments than the layout says.
    """
    owned = {
        (kind, name): (start, array)
        for name, start, arrays in fragments
        for kind, array in arrays.items()
    }
    arrays: dict[str, FloatArray] = {}
    for kind, name, start, numel in layout.tensors(rank):
        first, array = owned.pop((kind, name), (0, np.empty(0, np.float32)))
        # A reader computes what is where, so a rank that holds anything else must not write it.
        if (first, array.size) != (start, numel):
            raise CheckpointError(
                f"{kind} of parameter {name}: the layout gives this rank {numel} elements from "
                f"{start} on, and it holds {array.size} from {first} on"
            )
        arrays[f"{kind}/{name}"] = array
    if owned:
        kind, name = next(iter(owned))
        raise CheckpointError(
            f"{kind} of parameter {name} is held by this rank, to which the layout doesn't give it"
        )
    path = directory / file_of(rank)
    return FileRecord(*write_safetensors(path, arrays, layout.data_start, throttle), CHUNK_BYTES)


class FragmentReader:
    """Reader of any ranges of a checkpoint's parameters, whose bytes it verifies as it reads them.

    Raises:
        DamagedError: in every method: a file is missing, or has other bytes than were committed.
        StorageError: in every method: a file can't be read, which says nothing about it.
    """

    def __init__(self, files: CheckpointFiles, manifest: CheckpointManifest) -> None:
        self.location = files.location
        self._files = VerifiedFiles(files, manifest.files)
        try:
            stored = json.loads(self._files.whole(INDEX_NAME))
            self._layout: Layout | ListedLayout = (
                ListedLayout.from_json(stored, self._files)
                if manifest.format_version == 1
                else Layout.from_json(stored)
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._files.damaged(INDEX_NAME, f"isn't an index: {error!r}") from error

    @classmethod
    def open(cls, directory: Path) -> FragmentReader:
        """Open the checkpoint in a folder."""
        return cls(LocalFiles(directory), read_manifest(directory))

    @property
    def index(self) -> Index:
        """Shape and moments of each parameter."""
        return self._layout.entries

    def load(self, wants: Sequence[Want]) -> None:
        """Read all that is wanted, in few large reads.

        Raises:
            CheckpointError: the checkpoint has no such parameter, kind or range.
        """
        for want in wants:
            self._refuse_unknown(want)
        self._files.scatter(self._layout.pieces(wants))

    def read(self, kind: str, name: str, start: int = 0, numel: int | None = None) -> FloatArray:
        """Read elements [start, start + numel) of a parameter's `kind`: "fp32", or one of its
        moments. Many such reads are faster in one call of `load`.

        Raises:
            CheckpointError: the checkpoint has no such parameter, kind or range.
        """
        if numel is None:
            numel = self._entry_numel(name) - start
        out = np.empty(max(0, numel), dtype=np.float32)
        self.load([Want(kind, name, out, start)])
        return out

    def tensor(self, name: str, kind: str = WEIGHT) -> FloatArray:
        """Read a whole parameter in its shape."""
        return self.read(kind, name).reshape(self.index[name].shape)

    def tensors(self, names: Iterable[str], kind: str = WEIGHT) -> dict[str, FloatArray]:
        """Read several whole parameters in their shapes, in few large reads."""
        found = {name: np.empty(self._entry_numel(name), np.float32) for name in names}
        self.load([Want(kind, name, out) for name, out in found.items()])
        return {name: out.reshape(self.index[name].shape) for name, out in found.items()}

    def _entry_numel(self, name: str) -> int:
        entry = self.index.get(name)
        if entry is None:
            raise CheckpointError(f"{self.location} holds no parameter {name}")
        return entry.numel

    def _refuse_unknown(self, want: Want) -> None:
        numel, moments = self._entry_numel(want.name), self.index[want.name].moments
        if want.kind not in (WEIGHT, *moments):
            raise CheckpointError(
                f"{self.location}: parameter {want.name} has the moments {', '.join(moments)}, and no "
                f"{want.kind}"
            )
        if not 0 <= want.start <= want.stop <= numel:
            raise CheckpointError(
                f"{self.location}: parameter {want.name} has {numel} elements, requested "
                f"[{want.start}, {want.stop})"
            )
