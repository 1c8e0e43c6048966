"""Logits at chosen places alone: of a large vocabulary they would otherwise be most of the memory.

Shapes: B rows, L tokens of the longest, T = L - 1 predictions, N chosen of them in all rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from raymill.objective.objective import Forward
from raymill.objective.sequences import Sequences, passed


@dataclass(frozen=True)
class Places:
    """Predictions that are looked at: their row and column, and the token that is predicted, [N] each.

    Where none is chosen, one stands in, so that the head takes part all the same; `counts` is then 0.
    """

    row: torch.Tensor
    column: torch.Tensor
    target: torch.Tensor
    logits: torch.Tensor  # [N, V]
    counts: float


def logits_at(
    forward: Forward,
    head: torch.nn.Module,
    tokens_BL: torch.Tensor,
    chosen_BT: torch.Tensor,
    device: torch.device,
    opens_BT: torch.Tensor | None = None,
) -> Places:
    """A forward pass over all tokens but each row's last, with logits where `chosen_BT` isn't 0.

    `head` is the model's output matrix; rows are cut into sequences where `opens_BT` is true.
    """
    row_N, column_N = torch.nonzero(chosen_BT, as_tuple=True)
    idle = not len(row_N)
    if idle:
        row_N, column_N = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    sequences = Sequences.of(tokens_BL[:, :-1].contiguous(), opens_BT)
    with _only_at(head, (row_N * chosen_BT.shape[1] + column_N).to(device)):
        logits_NV = passed(forward, sequences, device).logits
    target_N = tokens_BL[row_N, column_N + 1].to(device)
    return Places(row_N.to(device), column_N.to(device), target_N, logits_NV, float(not idle))


@contextmanager
def _only_at(head: torch.nn.Module, flat_N: torch.Tensor) -> Iterator[None]:
    """Within the block, `head` sees just these of the flattened places, and gives [N, V]."""
    handle = head.register_forward_pre_hook(
        lambda _module, inputs: (inputs[0].flatten(0, 1)[flat_N], *inputs[1:])
    )
    try:
        yield
    finally:
        handle.remove()
