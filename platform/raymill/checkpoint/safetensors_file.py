"""Write a safetensors file and its digest in one pass.

The library's own writer copies every array before it writes, and the digest would need the file to
be read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

# The format requires that the data starts at a multiple of so many bytes.
_ALIGNMENT = 8
# Bytes that are written between two calls of the throttle: milliseconds of work.
_PIECE_BYTES = 2**20

FloatArray = npt.NDArray[np.float32]
# A writer calls it with the seconds of CPU time it has just used; it blocks for as long as other
# work should go first.
Throttle = Callable[[float], object]


def write_safetensors(
    path: Path, arrays: Mapping[str, FloatArray], throttle: Throttle | None = None
) -> tuple[int, str]:
    """Write contiguous fp32 arrays and flush them to the disk; return the size in bytes and the
    sha256.

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
    # The format allows spaces after the header's JSON.
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        parts = [memoryview(len(text).to_bytes(8, "little") + text), *map(_bytes, arrays.values())]
        for data in parts:
            for first in range(0, len(data), _PIECE_BYTES):
                # Only this thread's CPU time counts, not the time it waits for the disk.
                started = time.thread_time()
                piece = data[first : first + _PIECE_BYTES]
                stream.write(piece)
                digest.update(piece)
                if throttle is not None:
                    throttle(time.thread_time() - started)
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell(), digest.hexdigest()


def _bytes(array: FloatArray) -> memoryview:
    """Return a view of an array's memory."""
    return array.view(np.uint8).data if array.size else memoryview(b"")
