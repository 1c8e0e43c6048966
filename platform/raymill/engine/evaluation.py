"""Evaluation between steps: the protocol of evaluators, and the loss on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from raymill.data.store.validation import ValidationSet
from raymill.engine.group import WorkerGroup, iterate_on_all_ranks
from raymill.objective.objective import Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class EvalPoint:
    """Point of a run at which the model is measured: before any step (`first`), or after a step."""

    step: int
    first: bool
    last: bool

    def due(self, every: int) -> bool:
        """Return True if a measurement made every `every` steps, and after the last one, is due."""
        return self.last or (every > 0 and self.step > 0 and self.step % every == 0)


class Evaluator(Protocol):
    """A measurement of the model.

    Every rank makes the same number of forward passes, since each of them gathers weights under ZeRO-3.
    """

    def measure(
        self, model: PreTrainedModel, group: WorkerGroup, eval_point: EvalPoint
    ) -> dict[str, float]:
        """Return metrics by their logged names, of which rank 0's are logged; none where it isn't due."""
        ...


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch to evaluation mode without gradients, and back to the mode before."""
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
        """All nats, also of tokens that stand for no text, over the bytes: independent of the tokenizer."""
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss, perplexity and bits per byte over fixed held-out sets, whose rows are shared out over the ranks.

    `sets` are (name, rows), one per weight of the mixture. With several, each has metrics of its own, and those
    without a name are weighted means: of the losses, and of the bits per byte.
    """

    objective: Objective
    sets: tuple[tuple[str, ValidationSet], ...]
    weights: tuple[float, ...]
    every: int  # steps; also before the first and after the last
    prefix: str = "eval"

    def measure(
        self, model: PreTrainedModel, group: WorkerGroup, eval_point: EvalPoint
    ) -> dict[str, float]:
        """See `Evaluator`."""
        if not (eval_point.first or eval_point.due(self.every)):
            return {}
        by_name = {
            name: evaluate_set(model, self.objective, rows, group) for name, rows in self.sets
        }
        metrics = _loss_metrics(
            self.prefix,
            self._mean([totals.loss for totals in by_name.values()]),
            self._mean([totals.bits_per_byte for totals in by_name.values()]),
        )
        if len(by_name) > 1:
            for name, totals in by_name.items():
                metrics |= _loss_metrics(f"{self.prefix}/{name}", totals.loss, totals.bits_per_byte)
        return metrics

    def _mean(self, values: list[float]) -> float:
        # Weights need not sum to one.
        shares = [weight / sum(self.weights) for weight in self.weights]
        return sum(share * value for share, value in zip(shares, values, strict=True))


def _loss_metrics(prefix: str, loss: float, bits_per_byte: float) -> dict[str, float]:
    return {
        f"{prefix}/loss": loss,
        f"{prefix}/perplexity": math.exp(min(loss, 700.0)),  # e^709 is the largest float
        f"{prefix}/bits_per_byte": bits_per_byte,
    }


def evaluate_set(
    model: PreTrainedModel, objective: Objective, rows: ValidationSet, group: WorkerGroup
) -> Totals:
    """Evaluate a model on held-out rows; collective."""
    nats, weight, size = 0.0, 0.0, 0
    with evaluating(model):
        for weighted in iterate_on_all_ranks(group, rows):
            # Held-out metrics describe the text, so every token counts alike, however training weights it.
            batch = weighted.unweighted()
            nats += float(objective.losses(model, batch, group.device).double().sum())
            weight += objective.weight(batch)
            size += int(batch.bytes.sum()) if batch.bytes is not None else 0
    total_nats, total_weight, total_bytes = group.sum(nats, weight, size)
    return Totals(total_nats, total_weight, int(total_bytes))
