"""What the loop asks of an objective. Losses are sums; the loop divides by the global batch's weight,
so that no result depends on micro-batch, accumulation or world size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from raymill.data.rows import Rows

IGNORE = -100
Forward = Callable[..., Any]  # a model, or an engine around one: its result has `.logits`


class Objective(Protocol):
    """Rows → losses, for rows of one kind."""

    def weight(self, rows: Rows) -> float:
        """What the summed loss of `rows` is divided by: their predicted tokens, weighted."""
        ...

    def losses(self, forward: Forward, rows: Rows, device: torch.device) -> torch.Tensor:
        """[B] Summed, weighted negative log-likelihood of each row in nats, fp32.

        No rows make a forward pass all the same, of one row that predicts nothing, and give one loss
        of 0: under ZeRO-3 every rank must take part.
        """
        ...


def predicted_tokens(rows: Rows) -> int:
    """Tokens that are predicted at all, learned from or not: all but each row's first."""
    return int(rows.length.sum(dtype="int64")) - len(rows)
