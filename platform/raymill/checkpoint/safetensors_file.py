"""Writing a safetensors file in one pass: the library's own writer copies every array before it writes, and
would have the file read again for its digest."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

_ALIGNMENT = 8  # of the data's beginning, which the format asks for
_PIECE_BYTES = 2**20  # milliseconds of work

FloatArray = npt.NDArray[np.float32]


Rest = Callable[[float], object]
"""Called by a writer after so many seconds of a core, to be held up as long as others should go first."""


def write_safetensors(
    path: Path, arrays: Mapping[str, FloatArray], rest: Rest | None = None
) -> tuple[int, str]:
    """Write contiguous fp32 arrays and flush them to the disk; returns (size in bytes, sha256).

    Format: https://huggingface.co/docs/safetensors#format
    """
    header: dict[str, object] = {}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        parts = [memoryview(len(text).to_bytes(8, "little") + text), *map(_bytes, arrays.values())]
        for data in parts:
            for first in range(0, len(data), _PIECE_BYTES):
                began = time.thread_time()
                piece = data[first : first + _PIECE_BYTES]
                stream.write(piece)
                digest.update(piece)
                if rest is not None:
                    rest(time.thread_time() - began)
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell(), digest.hexdigest()


def _bytes(array: FloatArray) -> memoryview:
    """A view of an array's memory."""
    return array.view(np.uint8).data if array.size else memoryview(b"")
