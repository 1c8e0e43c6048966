"""What the loop asks of an objective. Losses are sums; the loop divides by the global batch's weight,
so that no result depends on micro-batch, accumulation or world size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from raymill.data.store.rows import Rows

IGNORE = -100
Forward = Callable[..., Any]  # a model, or an engine around one: its result has `.logits`


@dataclass(frozen=True)
class MetricSums:
    """Figures that an objective comes by while it computes losses: sums, and what they are divided by.

    Every rank and micro-batch adds the same names, so that the sums can be added up over all of them.
    """

    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, total: torch.Tensor | float, weight: float) -> None:
        """Count `total` into the numerator of a mean, and `weight` into its denominator."""
        found = self.sums.setdefault(name, [0.0, 0.0])
        found[0] += float(total)
        found[1] += weight

    def drain(self) -> dict[str, list[float]]:
        """What was counted since the last time."""
        found = dict(self.sums)
        self.sums.clear()
        return found


class Objective(Protocol):
    """Rows → losses, for rows of one kind."""

    @property
    def metric_sums(self) -> MetricSums:
        """Where it counts other figures."""
        ...

    def weight(self, rows: Any) -> float:
        """What the summed loss of `rows` is divided by: their predicted tokens, weighted."""
        ...

    def losses(self, forward: Forward, rows: Any, device: torch.device) -> torch.Tensor:
        """[B] Summed, weighted negative log-likelihood of each row in nats, fp32.

        No rows make a forward pass all the same, of one row that predicts nothing, and give one loss
        of 0: under ZeRO-3 every rank must take part.
        """
        ...


def predicted_tokens(rows: Rows) -> int:
    """Tokens that are predicted at all, learned from or not: all but each row's first."""
    return int(rows.length.sum(dtype="int64")) - len(rows)
