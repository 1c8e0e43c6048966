"""Tensors of a Hugging Face folder that are read by ranges, and transformers' loading without reading them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from raymill.errors import DataError
from raymill.model.blueprint import with_real_buffers
from raymill.model.trace import Trace
from raymill.model.values import PIECE, Held, Values
from raymill.reading import opened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names of the format: https://huggingface.co/docs/safetensors#format
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class _File:
    """A file read at any position. A map of it into memory would count as the process's memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stream: Any = None

    def read(self, offset: int, size: int) -> bytearray:
        """Read `size` bytes.

        Raises:
            DataError: the file is shorter.
            StorageError: it can't be read.
        """
        content = bytearray(size)
        with self._lock:
            if self._stream is None:
                self._stream = opened(self.path)
            self._stream.seek(offset)
            if self._stream.readinto(content) != size:
                raise DataError(f"{self.path}: its weights are incomplete; restore the file")
        return content


@dataclass(frozen=True)
class FileTensor(Values):
    """A tensor of a safetensors file; its elements are converted to `dtype` when they are read."""

    file: _File = field(repr=False)
    offset: int
    stored: torch.dtype
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, start: int, stop: int) -> torch.Tensor:
        if start >= stop:
            return torch.empty(0, dtype=self.dtype)
        size = self.stored.itemsize
        content = self.file.read(self.offset + start * size, (stop - start) * size)
        return torch.frombuffer(content, dtype=self.stored).to(self.dtype)

    # transformers asks these of a slice of safetensors.
    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return next(name for name, dtype in _DTYPES.items() if dtype == self.stored)


class _Header:
    """The names, types and places of a file's tensors, with the methods of safetensors' `safe_open`."""

    def __init__(self, filename: str, **settings: Any) -> None:
        from safetensors import safe_open

        # It refuses a damaged or incomplete file.
        with safe_open(filename, framework="pt") as checked:
            self._metadata = checked.metadata()
        file = _File(Path(filename))
        size = int.from_bytes(file.read(0, 8), "little")
        header = json.loads(bytes(file.read(8, size)))
        header.pop("__metadata__", None)
        self._tensors = {
            name: FileTensor(
                file,
                8 + size + entry["data_offsets"][0],
                _DTYPES[entry["dtype"]],
                tuple(entry["shape"]),
                _DTYPES[entry["dtype"]],
            )
            for name, entry in header.items()
        }

    def keys(self) -> list[str]:
        return list(self._tensors)

    def metadata(self) -> Any:
        return self._metadata

    def get_slice(self, name: str) -> FileTensor:
        return self._tensors[name]

    def __enter__(self) -> _Header:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the file open: its tensors are read later."""


@contextmanager
def unread(trace: Trace) -> Iterator[None]:
    """Make transformers' `from_pretrained` load models onto the meta device within the block.

    It matches, converts and ties the weights as ever, and `trace` records where they come from. Written against
    transformers 5.24.
    """
    from transformers import PreTrainedModel

    def materialized(
        tensor: Values | torch.Tensor, device: object = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        values: Values
        if isinstance(tensor, FileTensor):
            values = replace(tensor, dtype=dtype or tensor.dtype)
            shape, dtype = tensor.shape, values.dtype
        else:
            assert isinstance(tensor, torch.Tensor), "a tensor of a file that torch wrote"
            values = Held(tensor)
            shape, dtype = tuple(tensor.shape), dtype or tensor.dtype
        empty = torch.empty(shape, dtype=dtype, device="meta")
        trace.know(empty, values)
        return empty

    def real_buffers(model: torch.nn.Module, *_: object) -> None:
        with_real_buffers(model, trace)

    def recorded(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with trace.recording():
                return function(*args, **kwargs)

        return staticmethod(call)

    loads = ("_load_pretrained_model", "_finalize_model_loading")
    with ExitStack() as stack:
        stack.enter_context(patch("transformers.modeling_utils.safe_open", _Header))
        stack.enter_context(
            patch("transformers.core_model_loading._materialize_copy", materialized)
        )
        stack.enter_context(
            patch.object(PreTrainedModel, "_move_missing_keys_from_meta_to_device", real_buffers)
        )
        for name in loads:
            stack.enter_context(
                patch.object(PreTrainedModel, name, recorded(getattr(PreTrainedModel, name)))
            )
        yield


def tie_equal_weights(model: PreTrainedModel, trace: Trace) -> None:
    """Tie weights that a file holds twice, as transformers does where they are in memory and equal."""
    for target, source in list(model.all_tied_weights_keys.items()):
        kept, other = model.get_parameter(source), model.get_parameter(target)
        if kept is other:
            continue
        if kept.shape == other.shape and _are_equal(
            trace.values_of(kept, source, 0), trace.values_of(other, target, 0)
        ):
            path, _, key = target.rpartition(".")
            model.get_submodule(path).register_parameter(key, kept)
        else:
            del model.all_tied_weights_keys[target]


def _are_equal(one: Values, other: Values) -> bool:
    return all(
        torch.equal(one.read(first, last), other.read(first, last))
        for first in range(0, one.numel, PIECE)
        for last in (min(one.numel, first + PIECE),)
    )
