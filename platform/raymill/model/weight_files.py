"""Write a model's weights as safetensors files, one tensor at a time, with the files' digests.

The library's own writer takes all tensors of a file at once. Here the header is computed from shapes, and each
tensor is written, hashed, read back by the library and dropped before the next one is computed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from raymill.durable import write_atomic
from raymill.errors import CheckpointError

# transformers' limit until its version 5, which object stores and file servers still take in one request.
SHARD_BYTES = 5 * 2**30
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# Format: https://huggingface.co/docs/safetensors#format
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ALIGNMENT = 8
_PIECE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class TensorForm:
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def plan_shards(forms: Mapping[str, TensorForm], shard_bytes: int) -> list[list[str]]:
    """Return the tensors of each file, in order; a file of several stays within `shard_bytes`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, form in forms.items():
        if shards[-1] and filled + form.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += form.nbytes
    return shards


def write_weights(
    folder: Path,
    forms: Mapping[str, TensorForm],
    tensor_of: Callable[[str], torch.Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, str]:
    """Write all tensors, in the order of `forms`, and return file → sha256.

    Several files have an index, which tells transformers and vLLM where each tensor is.

    Raises:
        CheckpointError: a tensor that was written is read back with other bytes.
    """
    shards = plan_shards(forms, shard_bytes)
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = WEIGHTS_NAME if len(shards) == 1 else several
        digests[file] = _write_file(folder / file, {name: forms[name] for name in names}, tensor_of)
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(form.nbytes for form in forms.values())
        body = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_atomic(folder / INDEX_NAME, json.dumps(body, indent=1))
    return digests


def _write_file(
    path: Path, forms: Mapping[str, TensorForm], tensor_of: Callable[[str], torch.Tensor]
) -> str:
    # Larger elements first, so that every tensor is aligned to its own.
    ordered = sorted(forms, key=lambda name: -forms[name].dtype.itemsize)
    digest = hashlib.sha256()
    header = _header(ordered, forms)
    with path.open("wb") as stream:
        # The library reads only files of the length that their header says.
        stream.truncate(len(header) + sum(form.nbytes for form in forms.values()))
        _write(stream, digest, memoryview(header))
        for name in ordered:
            tensor, form = tensor_of(name).contiguous(), forms[name]
            assert (tuple(tensor.shape), tensor.dtype) == (form.shape, form.dtype), name
            _write(stream, digest, _bytes(tensor).numpy().data)
            stream.flush()
            _check_read_back(path, name, tensor)
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _header(names: Sequence[str], forms: Mapping[str, TensorForm]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        form = forms[name]
        header[name] = {
            "dtype": _NAMES[form.dtype],
            "shape": list(form.shape),
            "data_offsets": [offset, offset + form.nbytes],
        }
        offset += form.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format allows spaces after the header's JSON.
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write(stream: BinaryIO, digest: hashlib._Hash, data: memoryview) -> None:
    for first in range(0, len(data), _PIECE_BYTES):
        piece = data[first : first + _PIECE_BYTES]
        stream.write(piece)
        digest.update(piece)


def _check_read_back(path: Path, name: str, written: torch.Tensor) -> None:
    """Compare a tensor with what the library reads of it from the file, bit by bit."""
    from safetensors import safe_open

    # Opened for this tensor alone, since the pages of an open file would stay mapped.
    with safe_open(path, framework="pt") as file:
        read = file.get_tensor(name)
        same = read.dtype == written.dtype and read.shape == written.shape
        # As bytes, so that NaN equals itself.
        if not same or not torch.equal(_bytes(read), _bytes(written)):
            raise CheckpointError(
                f"{path}: {name} is read back with other values than were written; nothing was exported. "
                "Check the disk, and run the same command again"
            )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
