"""A model that learns, with its objective: one optimizer update over a rank's rows.

A job has one learner, or two where a critic learns along with the policy.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from raymill.engine.batches import Floats, RowBatch
from raymill.engine.group import WorkerGroup
from raymill.engine.trainer import Trainer
from raymill.objective.objective import Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Returns the reason for which a loss isn't to be learned from, or None; the same on all ranks.
Refusal = Callable[[float], str | None]


class Phases:
    """Seconds of one step by phase. Each phase is reported to `beat` when it starts."""

    def __init__(self, beat: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._beat = beat
        self._current: str | None = None
        self._started = 0.0

    def enter(self, phase: str | None) -> None:
        """Start a phase, which ends the one before; None only ends it."""
        now = time.perf_counter()
        if self._current is not None:
            self.seconds[self._current] += now - self._started
        self._current, self._started = phase, now
        if phase is not None:
            self._beat(phase)


@dataclass(frozen=True)
class Update:
    """Result of an update: its global loss and norm, and this rank's losses by row and sums of metrics."""

    losses: Floats  # [B]
    loss: float  # over the global weight
    weight: float  # global
    norm: float
    sums: dict[str, list[float]]  # numerators and denominators of means
    refused: str | None = (
        None  # the value that was refused and the reason, where nothing was applied
    )
    local: bool = False  # True if this rank's rows caused the refusal


@dataclass(frozen=True)
class Learner:
    """A model under DeepSpeed with its objective and learning rate.

    `prefix` stands before its parameters in checkpoints and before its metrics: "" or "critic/".
    """

    trainer: Trainer
    objective: Objective
    group: WorkerGroup
    micro_batch: int
    peak_rate: float
    prefix: str = ""

    @property
    def model(self) -> PreTrainedModel:
        return self.trainer.model

    def update(
        self, rows: RowBatch, weight: float, rate: float, phases: Phases, refusal: Refusal
    ) -> Update:
        """Run forward, backward and one optimizer step over this rank's rows; collective.

        `weight` is that of the whole update, over all ranks and micro-batches: the denominator of the loss.
        Nothing is applied where it is 0, or the loss or the gradient is refused.
        """
        if weight == 0:
            self.objective.metric_sums.drain()
            return Update(np.zeros(len(rows)), 0.0, 0.0, 0.0, {})
        losses, loss, why = self._accumulate(rows, weight, phases, refusal)
        phases.enter("optimizer")
        norm = self.trainer.update(rate)
        phases.enter(None)
        sums = self.objective.metric_sums.drain()
        model = self.prefix.replace("/", "'s ")
        if why is not None:
            local = not np.isfinite(losses.sum())
            return Update(losses, loss, weight, norm, sums, f"the {model}loss {why}", local)
        if not np.isfinite(norm):
            why = f"the {model}gradient norm is not finite"
            return Update(losses, loss, weight, norm, sums, why, local=True)
        return Update(losses, loss, weight, norm, sums)

    def _accumulate(
        self, rows: RowBatch, weight: float, phases: Phases, refusal: Refusal
    ) -> tuple[Floats, float, str | None]:
        """Accumulate gradients over micro-batches.

        Return this rank's losses by row, the global loss, and the reason if it is refused.
        """
        losses: list[torch.Tensor] = []
        loss, why = 0.0, None
        for first in range(0, len(rows), self.micro_batch):
            last = first + self.micro_batch >= len(rows)
            phases.enter("forward")
            self.trainer.begin_micro_batch(last=last)
            losses_B = self.objective.losses(
                self.trainer.engine, rows.part(first, first + self.micro_batch), self.group.device
            )
            # Not read on the host before the end, since that would wait for the GPU.
            losses.append(losses_B.detach())
            if last:
                # The loss of the whole update is known only now. It isn't too late to refuse it: a NaN in the
                # last backward pass makes the gradient non-finite, and every ZeRO stage drops such a gradient.
                phases.enter("agree")
                nats = float(torch.cat(losses).double().sum())
                loss = global_loss(nats, weight, self.group)
                why = refusal(loss)
                if why is not None:
                    losses_B = losses_B * math.nan
            phases.enter("backward")
            self.trainer.backward(losses_B.sum(), weight)
        phases.enter(None)
        return torch.cat(losses).double().cpu().numpy(), loss, why


def global_loss(nats: float, weight: float, group: WorkerGroup) -> float:
    """Return the sum of all ranks' losses over the global weight; NaN if any isn't finite. Collective."""
    finite = bool(np.isfinite(nats))
    # Non-finite values are counted instead of added, so that the result is the same on every rank.
    total, bad = group.sum(nats if finite else 0.0, not finite)
    return math.nan if bad else total / weight
