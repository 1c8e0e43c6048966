"""Observation of what a library does with tensors that have no memory (torch's meta device).

transformers and peft build models, initialize, load, extend and wrap them. Here they do so with meta tensors,
and what they would have written is recorded instead: the distribution that a parameter is initialized from, or
the tensors of a file and the functions of them that make it. Any range of it can then be made alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from raymill.errors import ConfigError
from raymill.model.computed import Computed
from raymill.model.values import Distribution, Held, InitialValues, Values

# Where a tensor lies: its storage, and the view of it.
_Place: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...]]


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations on meta tensors within the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._values: dict[_Place, Values] = {}
        self._writes: dict[int, list[tuple[int, int, Distribution | Values]]] = {}
        # A storage that was freed could come back as another tensor's.
        self._kept: list[torch.Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record within the block, truncated normal distributions too, which torch skips on the meta device."""

        def truncated(
            tensor: torch.Tensor, mean: float, std: float, a: float, b: float, generator: Any = None
        ) -> torch.Tensor:
            self._write(tensor, Distribution("truncated", (mean, std, a, b)))
            return tensor

        with patch("torch.nn.init._no_grad_trunc_normal_", truncated), self:
            yield

    def know(self, tensor: torch.Tensor, values: Values) -> None:
        """Tell the values of a meta tensor."""
        self._kept.append(tensor.detach())
        self._values[_place(tensor)] = values

    def knows(self, argument: Any) -> bool:
        """Tell whether the values of a tensor, or of one in a list, were recorded."""
        if isinstance(argument, torch.Tensor):
            return argument.is_meta and (
                _place(argument) in self._values
                or argument.untyped_storage()._cdata in self._writes
            )
        return isinstance(argument, list | tuple) and any(map(self.knows, argument))

    def values_of(self, tensor: torch.Tensor, name: str, seed: int) -> Values:
        """Return the values of a parameter or buffer; where they are drawn, by its name and the seed.

        Raises:
            ConfigError: nothing was recorded of it.
        """
        if not tensor.is_meta:
            return Held(tensor)
        writes = self._writes.get(tensor.untyped_storage()._cdata, [])
        known = self._values.get(_place(tensor))
        if known is not None and not writes:
            return known
        # Writes are recorded by their places in the whole storage.
        if tensor.untyped_storage().nbytes() != tensor.nbytes or not tensor.is_contiguous():
            raise ConfigError([f"{name}: it is a part of a tensor that is initialized as a whole"])
        parts = tuple(writes) if known is None else ((0, tensor.numel(), known), *writes)
        if not _covers(parts, tensor.numel()):
            raise ConfigError(
                [f"{name}: transformers doesn't initialize it, so its values aren't known"]
            )
        return InitialValues(name, seed, tuple(tensor.shape), parts)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        in_place = func.overloadpacket._qualified_op_name.endswith("_")
        if in_place and args[0].is_meta:
            content = self._written(func, args[1:])
            # Copies are tried, for the shapes; what else is written has none, and torch is slow at it.
            if isinstance(content, Values):
                func(*args, **kwargs)
            self._write(args[0], content)
            return args[0]
        result = func(*args, **kwargs)
        if in_place:
            return result
        if any(map(self.knows, args)) and not any(map(self._lacks, args)):
            self._compute(func, args, kwargs, result)
        return result

    def _lacks(self, argument: Any) -> bool:
        """Tell whether it is, or a list has, a meta tensor whose values weren't recorded."""
        if isinstance(argument, torch.Tensor):
            return argument.is_meta and not self.knows(argument)
        return isinstance(argument, list | tuple) and any(map(self._lacks, argument))

    def _compute(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        several = isinstance(result, list | tuple)
        for number, tensor in enumerate(result if several else (result,)):
            place = _place(tensor)
            # A view that is the tensor itself, or one that was already looked at.
            if not tensor.is_meta or place in self._values:
                continue
            if tensor.untyped_storage()._cdata in self._writes:
                continue
            self.know(
                tensor,
                Computed(
                    func,
                    tuple(map(self._operand, args)),
                    # The device is the meta device's; evaluated, they are on the host.
                    {key: value for key, value in kwargs.items() if key != "device"},
                    tuple(tensor.shape),
                    tensor.dtype,
                    number if several else None,
                ),
            )

    def _operand(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return self.values_of(argument, "a weight", 0)
        if isinstance(argument, list | tuple):
            return type(argument)(map(self._operand, argument))
        return argument

    def _written(self, func: Any, args: tuple[Any, ...]) -> Distribution | Values | float:
        """Return what an operation in place writes; a number where it scales what is there."""
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        numbers = tuple(float(x) for x in args if isinstance(x, int | float))
        if name == "normal_":
            return Distribution("normal", (*numbers, *(0.0, 1.0)[len(numbers) :]))
        if name == "uniform_":
            return Distribution("uniform", (*numbers, *(0.0, 1.0)[len(numbers) :]))
        if name == "zero_":
            return Distribution("constant", (0.0,))
        if name == "fill_" and numbers:
            return Distribution("constant", numbers)
        if name == "mul_" and len(numbers) == 1:
            return numbers[0]
        if name == "copy_" and (not args[0].is_meta or self.knows(args[0])):
            return self.values_of(args[0], "a weight", 0)
        return Distribution(name)

    def _write(self, tensor: torch.Tensor, content: Distribution | Values | float) -> None:
        storage = tensor.untyped_storage()._cdata
        start = int(tensor.storage_offset())
        stop = start + tensor.numel()
        writes = self._writes.get(storage, [])
        if isinstance(content, float):
            # A product of what was drawn; whatever else is multiplied isn't an initialization by a known rule.
            scaled = [_scaled(part, content) for part in writes]
            if writes and all(start <= low and high <= stop for low, high, _ in writes):
                self._writes[storage] = scaled
                return
            content = Distribution("mul_")
        if not tensor.is_contiguous():
            content = Distribution("a write with gaps")
        self._kept.append(tensor.detach())
        # What is overwritten entirely needs no drawing.
        left = [part for part in writes if not (start <= part[0] and part[1] <= stop)]
        self._writes[storage] = [*left, (start, stop, content)]


def _scaled(
    part: tuple[int, int, Distribution | Values], factor: float
) -> tuple[int, int, Distribution | Values]:
    start, stop, content = part
    if isinstance(content, Distribution) and content.numbers:
        scaled = Distribution(content.kind, content.numbers, content.scale * factor)
        return start, stop, scaled
    return start, stop, Distribution("mul_")


def _place(tensor: torch.Tensor) -> _Place:
    storage = tensor.untyped_storage()._cdata
    return storage, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


def _covers(parts: tuple[tuple[int, int, Distribution | Values], ...], numel: int) -> bool:
    position = 0
    for start, stop, _ in sorted(parts, key=lambda part: part[:2]):
        if start > position:
            return False
        position = max(position, stop)
    return position >= numel
