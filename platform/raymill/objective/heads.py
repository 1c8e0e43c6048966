"""Output matrices and scalar heads in fp32, whatever the rest of a model computes in.

A bf16 number has 8 bits: a logit of 20 is rounded to a multiple of 1/8, and the log-probability computed
from it is off by 0.03 nats. Ratios of probabilities, margins between answers and scores are too precise for
that error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class Fp32Head:
    """Context in which a head computes in fp32: its inputs and weights are converted, its output is fp32.

    The context may be entered repeatedly. Without gradients, converted weights are cached, so weights must not
    change between entries.
    """

    def __init__(self, head: torch.nn.Module) -> None:
        self._head = head
        self._products = _Fp32Products()
        # The patched forward of an enclosing context, to be restored at exit.
        self._outer: Callable[..., torch.Tensor] | None = None

    def __enter__(self) -> None:
        original: Callable[..., torch.Tensor] = self._head.forward
        self._outer = vars(self._head).get("forward")

        def forward(*args: object, **kwargs: object) -> torch.Tensor:
            with self._products:
                return original(*args, **kwargs)

        # Patched rather than replaced by another module: the head's own hooks still run, with which ZeRO-3
        # gathers its weights.
        self._head.forward = forward

    def __exit__(self, *_: object) -> None:
        del self._head.forward
        if self._outer is not None:
            self._head.forward = self._outer


class _Fp32Products(TorchFunctionMode):
    """Mode in which linear maps use fp32 copies of their operands."""

    def __init__(self) -> None:
        super().__init__()
        # Copies of weights by their id, made once where no gradient is needed.
        self._copies: dict[int, torch.Tensor] = {}

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if function is F.linear:
            args = tuple(map(self._to_fp32, args))
            kwargs = {name: self._to_fp32(value) for name, value in (kwargs or {}).items()}
        return function(*args, **(kwargs or {}))

    def _to_fp32(self, operand: object) -> object:
        if not isinstance(operand, torch.Tensor):
            return operand
        if operand.dtype.itemsize >= torch.float32.itemsize:
            return operand
        if torch.is_grad_enabled() or not isinstance(operand, torch.nn.Parameter):
            return operand.float()
        if id(operand) not in self._copies:
            self._copies[id(operand)] = operand.float()
        return self._copies[id(operand)]
