"""Write a safetensors file and the digests of its chunks in one pass.

The library's own writer copies every array before it writes, and the digests would need the file to
be read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raymill.checkpoint.chunks import DIGEST_BYTES, ChunkHasher, table_bytes

# Name of the table of digests, which is the last tensor of a file.
TABLE_NAME = "chunks/sha256"
# Headers are padded to a multiple, so that reads of the data can be aligned with storage.
_ALIGNMENT = 4096
# Bytes that are written between two calls of the throttle: a millisecond of work.
_PIECE_BYTES = 2**20
# The longest that an entry of a header can be, apart from its name.
_ENTRY_BYTES = len(
    f':{{"dtype":"F32","shape":[{2**63}, {2**63}],"data_offsets":[{2**63}, {2**63}]}},'
)

FloatArray = npt.NDArray[np.float32]
# A writer calls it with the seconds of CPU time it has just used; it blocks for as long as other
# work should go first.
Throttle = Callable[[float], object]


def data_start_for(names: Iterable[str]) -> int:
    """Return where the data can start in any file that has some of the tensors `names`.

    It is the same for the files of all ranks, which have parts of different sizes.
    """
    entries = sum(len(json.dumps(name)) + _ENTRY_BYTES for name in (*names, TABLE_NAME))
    return -(-(8 + 2 + entries) // _ALIGNMENT) * _ALIGNMENT


def write_safetensors(
    path: Path,
    arrays: Mapping[str, FloatArray],
    data_start: int,
    throttle: Throttle | None = None,
) -> tuple[int, str]:
    """Write contiguous fp32 arrays, the first at `data_start`, and flush them to the disk.

    Return the size in bytes and the sha256 of the table of digests.

    Format: https://huggingface.co/docs/safetensors#format
    """
    header: dict[str, object] = {}
    offset = 0
    for name, array in arrays.items():
        header[name] = _entry("F32", list(array.shape), offset, array.nbytes)
        offset += array.nbytes
    size = table_bytes(data_start + offset)
    header[TABLE_NAME] = _entry("U8", [size // DIGEST_BYTES, DIGEST_BYTES], offset, size)
    # The format allows spaces after the header's JSON.
    text = json.dumps(header, separators=(",", ":")).encode().ljust(data_start - 8)
    assert len(text) == data_start - 8, "the header fits before the data"
    hasher = ChunkHasher()
    with path.open("wb") as stream:
        parts = [memoryview(len(text).to_bytes(8, "little") + text), *map(_bytes, arrays.values())]
        for data in parts:
            for first in range(0, len(data), _PIECE_BYTES):
                # Only this thread's CPU time counts, not the time it waits for the disk.
                started = time.thread_time()
                piece = data[first : first + _PIECE_BYTES]
                stream.write(piece)
                hasher.update(piece)
                if throttle is not None:
                    throttle(time.thread_time() - started)
        table = hasher.table()
        assert len(table) == size, "the header names the table's size"
        stream.write(table)
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell(), hashlib.sha256(table).hexdigest()


def _entry(dtype: str, shape: list[int], offset: int, size: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}


def _bytes(array: FloatArray) -> memoryview:
    """Return a view of an array's memory."""
    return array.view(np.uint8).data if array.size else memoryview(b"")
