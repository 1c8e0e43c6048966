"""Measuring a model between steps: evaluators give figures, each by all ranks together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from raymill.data.store.validation import ValidationSet
from raymill.engine.agreement import each_on_all_ranks
from raymill.engine.group import WorkerGroup
from raymill.objective.objective import Objective


@dataclass(frozen=True)
class EvalPoint:
    """When a model is measured; `first` is before any step, `last` after all of them."""

    step: int
    first: bool
    last: bool

    def due(self, every: int) -> bool:
        """Whether something measured every so many steps, and after the last, is due now."""
        return self.last or (every > 0 and self.step > 0 and self.step % every == 0)


class Evaluator(Protocol):
    """Something to measure. Every rank makes the same number of forward passes, since under ZeRO-3 each
    gathers weights."""

    def measure(self, model: Any, group: WorkerGroup, eval_point: EvalPoint) -> dict[str, float]:
        """Figures by the names under which they are logged, on every rank; none where it isn't due."""
        ...


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; the mode before comes back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class Totals:
    """Sums over held-out rows: nats of loss, predicted tokens, and bytes of their text."""

    nats: float
    weight: float
    bytes: int

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return self.nats / self.weight

    @property
    def bits_per_byte(self) -> float:
        """Independent of the tokenizer: all nats, also of tokens that stand for no text, over the bytes."""
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss, perplexity and bits per byte over fixed held-out sets, each shared out over the ranks.

    `sets` are (name, rows), one a weight of the mixture. With several, each has figures of its own, and those
    without a name are the mean by weight: of the losses, and of the bits per byte.
    """

    objective: Objective
    sets: tuple[tuple[str, ValidationSet], ...]
    weights: tuple[float, ...]
    every: int  # steps; also before the first and after the last
    prefix: str = "eval"

    def measure(self, model: Any, group: WorkerGroup, eval_point: EvalPoint) -> dict[str, float]:
        """See `Evaluator`."""
        if not (eval_point.first or eval_point.due(self.every)):
            return {}
        found = {name: total(model, self.objective, rows, group) for name, rows in self.sets}
        figures = _named(
            self.prefix,
            self._mean([one.loss for one in found.values()]),
            self._mean([one.bits_per_byte for one in found.values()]),
        )
        if len(found) > 1:
            for name, one in found.items():
                figures |= _named(f"{self.prefix}/{name}", one.loss, one.bits_per_byte)
        return figures

    def _mean(self, values: list[float]) -> float:
        shares = [weight / sum(self.weights) for weight in self.weights]
        return sum(share * value for share, value in zip(shares, values, strict=True))


def _named(prefix: str, loss: float, bits_per_byte: float) -> dict[str, float]:
    """Figures as they are logged."""
    return {
        f"{prefix}/loss": loss,
        f"{prefix}/perplexity": math.exp(min(loss, 700.0)),
        f"{prefix}/bits_per_byte": bits_per_byte,
    }


def total(model: Any, objective: Objective, rows_: ValidationSet, group: WorkerGroup) -> Totals:
    """Evaluate `model` on held-out rows; collective."""
    nats, weight, size = 0.0, 0.0, 0
    with evaluating(model):
        for weighted in each_on_all_ranks(group, rows_):
            rows = weighted.unweighted()  # figures of text, whatever training makes of it
            nats += float(objective.losses(model, rows, group.device).double().sum())
            weight += objective.weight(rows)
            size += int(rows.bytes.sum()) if rows.bytes is not None else 0
    total_nats, total_weight, total_bytes = group.sum(nats, weight, size)
    return Totals(total_nats, total_weight, int(total_bytes))
