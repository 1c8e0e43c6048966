"""Muon: momentum, orthogonalized, for matrices; AdamW for everything else.

Jordan et al. 2024 ("Muon: An optimizer for hidden layers in neural networks"): the momentum of a matrix is
replaced by a matrix near the closest semi-orthogonal one, by five Newton-Schulz iterations with their
constants. Liu et al. 2025 ("Muon is scalable for LLM training", equation 4): the update is scaled by
0.2·√max(N, M), which gives its elements the root mean square that AdamW's have, so that AdamW's learning rate
and weight decay carry over.

The update is defined here alone. Under ZeRO the optimizer sees flat parts of many matrices, and an exchange
between the ranks assembles each matrix on one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from raymill.engine.matrix_exchange import MatrixExchange

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST_NORM = 1e-7  # divisor of an all-zero matrix, which stays zero
UPDATE_RMS = 0.2  # of AdamW's updates, as measured by Liu et al.


def orthogonalize(matrix_NM: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return U·S·Vᵀ for a matrix U·Σ·Vᵀ, with singular values S between about 0.7 and 1.2.

    The norm is computed in the matrix's own precision, the iterations and the result in `dtype`.
    """
    a, b, c = COEFFICIENTS
    # Transposed if that makes the Gram matrix smaller.
    tall = matrix_NM.shape[0] > matrix_NM.shape[1]
    x = matrix_NM.T if tall else matrix_NM
    x = (x / x.norm().clamp(min=SMALLEST_NORM)).to(dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def update_scale(shape: Sequence[int]) -> float:
    """Return the factor of an orthogonalized matrix, in addition to the learning rate."""
    return UPDATE_RMS * math.sqrt(max(shape))


class Muon(torch.optim.AdamW):
    """AdamW in torch's fused kernel, except that groups with `muon=True` hold matrices.

    Without an `exchange`, the parameters of such groups are the matrices themselves. With one, they are tensors
    that hold parts of matrices, and `step` is collective. Gradients of matrices are overwritten.
    """

    exchange: MatrixExchange | None = None

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        groups = [{"muon": False} | group for group in groups]
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self._momentum = momentum
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        groups = self.param_groups
        try:
            # AdamW steps over its own groups alone; the lists are restored even if it raises.
            self.param_groups = [group for group in groups if not group["muon"]]
            super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        rate, decay = group["lr"], group["weight_decay"]
        keys = [key for key in group["params"] if key.grad is not None]
        for key in keys:
            self._blend(key)
        for shape, weight, update in self._updates(keys):
            # Decoupled weight decay, as in AdamW.
            weight.mul_(1 - rate * decay)
            weight.add_(update, alpha=-rate * update_scale(shape))

    def _blend(self, key: torch.Tensor) -> None:
        """Advance the momentum, and replace the gradient by Nesterov's blend of gradient and momentum."""
        state, gradient = self.state[key], key.grad
        assert gradient is not None, "only parameters with a gradient are updated"
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(key, memory_format=torch.preserve_format)
        momentum: torch.Tensor = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - self._momentum)
        gradient.lerp_(momentum, self._momentum)

    def _updates(
        self, keys: Sequence[torch.Tensor]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor, torch.Tensor]]:
        """Yield (shape of a matrix, this process's weights of it, their update)."""
        function = partial(orthogonalize, dtype=self._dtype)
        if self.exchange is None:
            for key in keys:
                assert key.grad is not None, "only parameters with a gradient are updated"
                yield key.shape, key, function(key.grad)
        else:
            for matrix, update in self.exchange.apply(keys, function, self._dtype):
                yield matrix.shape, matrix.weight(), update
