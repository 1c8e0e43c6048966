"""Output matrices and scalar heads in fp32, whatever the rest of a model computes in.

A bf16 number has 8 bits: a logit of 20 is a multiple of 1/8, and the log-probability that follows from it is
off by 0.03 nats. A ratio of probabilities, a margin between answers or a score has no other noise to hide that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class Fp32Head:
    """Within its block the head takes what it is given, and its weights, in fp32, and gives fp32.

    The block may be entered again and again; without gradients, the weights are taken to stay as they are.
    """

    def __init__(self, head: torch.nn.Module) -> None:
        self._head = head
        self._products = _Fp32Products()
        self._around: Any = None  # the forward of another block, around this one

    def __enter__(self) -> None:
        plain = self._head.forward
        self._around = vars(self._head).get("forward")

        def forward(*inputs: Any, **named: Any) -> Any:
            with self._products:
                return plain(*inputs, **named)

        # The module is still what runs: whoever gathers its weights before it does, as ZeRO-3, sees it run.
        self._head.forward = forward

    def __exit__(self, *_: object) -> None:
        del self._head.forward
        if self._around is not None:
            self._head.forward = self._around


class _Fp32Products(TorchFunctionMode):
    """Linear maps of fp32 copies of their operands."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[int, torch.Tensor] = {}  # of weights, where no gradient is wanted

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is F.linear:
            args = tuple(map(self._widened, args))
            kwargs = {name: self._widened(value) for name, value in (kwargs or {}).items()}
        return function(*args, **(kwargs or {}))

    def _widened(self, operand: torch.Tensor | None) -> torch.Tensor | None:
        if operand is None or operand.dtype.itemsize >= torch.float32.itemsize:
            return operand
        if torch.is_grad_enabled() or not isinstance(operand, torch.nn.Parameter):
            return operand.float()
        if id(operand) not in self._copies:
            self._copies[id(operand)] = operand.float()
        return self._copies[id(operand)]
