"""Values that a torch function makes of others, as when transformers joins a file's experts into one tensor.

Functions that only move elements are read in ranges; of others the whole result is computed and then cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raymill.model.values import Held, Values

# Functions of one tensor that keep the order of its elements.
_ORDERLY = {"view", "_unsafe_view", "unsqueeze", "squeeze", "clone", "alias", "detach", "_to_copy"}


@dataclass(frozen=True)
class Computed(Values):
    """The result of `function`, or its result number `output` where it has several."""

    function: Callable[..., Any]  # an operator of torch.ops.aten
    arguments: tuple[Any, ...]  # with `Values` in place of tensors
    settings: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: torch.dtype
    output: int | None = None

    def read(self, start: int, stop: int) -> torch.Tensor:
        name = _name_of(self.function)
        source = self.arguments[0]
        if name in _ORDERLY:
            read: torch.Tensor = source.read(start, stop)
            return read.to(self.dtype)
        if name in ("cat", "stack"):
            return self._joined(source, start, stop)
        if name == "index" and (rows := self._chosen()) is not None:
            return self._rows(source, rows, start, stop)
        if (first := self._first(name)) is not None:
            part: torch.Tensor = source.read(first + start, first + stop)
            return part
        return self.whole().reshape(-1)[start:stop]

    def whole(self) -> torch.Tensor:
        result = self.function(*map(_whole, self.arguments), **self.settings)
        tensor: torch.Tensor = result if self.output is None else result[self.output]
        return tensor

    def _joined(self, parts: Sequence[Values], start: int, stop: int) -> torch.Tensor:
        """Read a range of tensors joined along a dimension: for each index before it, a piece of each."""
        dim = (self.arguments[1] if len(self.arguments) > 1 else 0) % len(self.shape)
        outer = math.prod(self.shape[:dim])
        sizes = [part.numel // outer for part in parts]
        period = sum(sizes)
        out = torch.empty(stop - start, dtype=self.dtype)
        for index in range(start // period, -(-stop // period)):
            position = index * period
            for part, size in zip(parts, sizes, strict=True):
                low, high = max(start, position), min(stop, position + size)
                if low < high:
                    shift = index * size - position
                    out[low - start : high - start] = part.read(low + shift, high + shift)
                position += size
        return out

    def _chosen(self) -> list[int] | None:
        """Return the rows that an index of the first dimension chooses; None if it is another index."""
        match self.arguments[1]:
            case [Held(tensor=index)] if index.ndim == 1 and index.dtype == torch.int64:
                rows: list[int] = index.tolist()
                return rows
        return None

    def _rows(self, source: Values, rows: Sequence[int], start: int, stop: int) -> torch.Tensor:
        width = math.prod(source.shape[1:])
        out = torch.empty(stop - start, dtype=self.dtype)
        for number in range(start // width, -(-stop // width)):
            low, high = max(start, number * width), min(stop, (number + 1) * width)
            shift = (rows[number] - number) * width
            out[low - start : high - start] = source.read(low + shift, high + shift)
        return out

    def _first(self, name: str) -> int | None:
        """Return where a part begins that was cut off along the first dimension; None if it is none."""
        source = self.arguments[0]
        if name == "split":
            size = self.arguments[1]
            dim = self.arguments[2] if len(self.arguments) > 2 else 0
            index = (self.output or 0) * size
        elif name == "select":
            dim, index = self.arguments[1], self.arguments[2]
        elif name == "slice":
            # What isn't given is the default: the first dimension, from its start to its end.
            given = (*self.arguments[1:], *(0, None, None, 1)[len(self.arguments) - 1 :])
            if given[3] != 1:
                return None
            dim, index = given[0], given[1] or 0
        else:
            return None
        # A negative index counts from the end.
        first: int = (index % source.shape[0] if index < 0 else index) * math.prod(source.shape[1:])
        return first if dim == 0 else None


def _name_of(function: Callable[..., Any]) -> str:
    name: str = function.overloadpacket.__name__  # type: ignore[attr-defined]
    return name


def _whole(argument: Any) -> Any:
    if isinstance(argument, Values):
        return argument.whole()
    if isinstance(argument, list | tuple):
        return type(argument)(map(_whole, argument))
    return argument
