"""Interface between the training loop and its objectives.

Losses are sums, which the loop divides by the global batch's weight; so no result depends on micro-batch,
accumulation or world size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from raymill.data.store.rows import Rows

IGNORE = -100


class ModelOutput(Protocol):
    """Output of a transformers model."""

    @property
    def logits(self) -> torch.Tensor:
        """Logits of next tokens, or scores."""
        ...


# A model, or an engine around one.
Forward = Callable[..., ModelOutput]


@dataclass(frozen=True)
class MetricSums:
    """Numerators and denominators of the means that an objective logs, accumulated while it computes losses.

    Every rank and micro-batch adds the same names, so that the sums can be added up over all of them.
    """

    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, total: torch.Tensor | float, weight: float) -> None:
        """Add `total` to the numerator of a mean, and `weight` to its denominator."""
        entry = self.sums.setdefault(name, [0.0, 0.0])
        entry[0] += float(total)
        entry[1] += weight

    def drain(self) -> dict[str, list[float]]:
        """Return the sums since the last call and start again from zero."""
        drained = dict(self.sums)
        self.sums.clear()
        return drained


class Objective(Protocol):
    """Losses of rows of one kind."""

    @property
    def metric_sums(self) -> MetricSums:
        """Sums behind the other metrics that it logs."""
        ...

    def weight(self, rows: Any) -> float:
        """Return the divisor of the rows' summed loss: their predicted tokens, weighted."""
        ...

    def losses(self, forward: Forward, rows: Any, device: torch.device) -> torch.Tensor:
        """[B] Summed, weighted negative log-likelihood of each row in nats, fp32.

        Without rows, make a forward pass all the same, on one row that predicts nothing, and return one loss
        of 0: under ZeRO-3 every rank must take part.
        """
        ...


def predicted_tokens(rows: Rows) -> int:
    """Return the number of predicted tokens, with a loss or without: all but each row's first."""
    return int(rows.length.sum(dtype="int64")) - len(rows)
