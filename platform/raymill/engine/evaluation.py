"""Held-out loss, perplexity and bits per byte over a fixed set, shared out over the ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from raymill.data.validation import ValidationSet
from raymill.engine.group import WorkerGroup
from raymill.objective.language_modelling import LanguageModelling, Rows


@dataclass(frozen=True)
class Evaluation:
    """Sums over the held-out set: nats of loss, predicted tokens, bytes of text."""

    nats: float
    tokens: int
    bytes: int

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Independent of the tokenizer: all nats, end-of-text's too, over the bytes of text."""
        return self.nats / math.log(2) / self.bytes

    def metrics(self) -> dict[str, float]:
        """As they are logged."""
        return {
            "eval/loss": self.loss,
            "eval/perplexity": math.exp(min(self.loss, 700.0)),
            "eval/bits_per_byte": self.bits_per_byte,
        }


def evaluate(
    model: Any, objective: LanguageModelling, held_out: ValidationSet, group: WorkerGroup
) -> Evaluation:
    """Evaluate `model` on `held_out`; collective.

    Every rank makes the same number of forward passes, since under ZeRO-3 each gathers weights.
    """
    was_training = model.training
    model.eval()
    nats, tokens, size = 0.0, 0, 0
    with torch.no_grad():
        for tokens_BT1, length_B, bytes_B in held_out:
            rows = Rows(tokens_BT1, length_B)
            nats += float(objective.loss_sum(model, rows, group.device))
            tokens += objective.predicted_tokens(rows)
            size += int(bytes_B.sum())
    model.train(was_training)
    total_nats, total_tokens, total_bytes = group.sum(nats, tokens, size)
    return Evaluation(total_nats, int(total_tokens), int(total_bytes))
