"""A model that learns, with what it learns: one optimizer update over a rank's rows.

A job has one learner, or two where a critic learns beside the policy.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raymill.engine.group import WorkerGroup
from raymill.engine.trainer import Trainer
from raymill.objective.objective import Objective

Floats = npt.NDArray[np.float64]


class Phases:
    """Seconds of one step by what they were spent on, each phase being told to `beat` as it begins."""

    def __init__(self, beat: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._beat = beat
        self._current: str | None = None
        self._began = 0.0

    def enter(self, phase: str | None) -> None:
        """This phase from now on; None: none of them."""
        now = time.perf_counter()
        if self._current is not None:
            self.seconds[self._current] += now - self._began
        self._current, self._began = phase, now
        if phase is not None:
            self._beat(phase)


@dataclass(frozen=True)
class Update:
    """What an update came to: this rank's losses by row, and the global figures."""

    losses: Floats  # [B]
    loss: float  # over the global weight
    weight: float
    norm: float
    figures: dict[str, float]
    refused: str | None = None  # why nothing was learned: what is wrong with which value
    mine: bool = False  # whether this rank's rows have it


@dataclass(frozen=True)
class Learner:
    """`prefix` stands before its parameters in checkpoints and before its figures: "" or "critic/"."""

    trainer: Trainer
    objective: Objective
    group: WorkerGroup
    micro_batch: int
    peak_rate: float
    prefix: str = ""

    @property
    def model(self) -> Any:
        return self.trainer.model

    def update(
        self, rows: Any, rate: float, phases: Phases, refusal: Callable[[float], str | None]
    ) -> Update:
        """Forward, backward and one optimizer step over this rank's rows; collective.

        Where nothing carries weight on any rank, or the loss or the gradient is refused, nothing is updated.
        `refusal(loss)` says why a loss isn't to be learned from, the same on all ranks.
        """
        [weight] = self.group.sum(self.objective.weight(rows))
        if weight == 0:
            self.objective.metric_sums.drain()
            return Update(np.zeros(len(rows)), 0.0, 0.0, 0.0, {})
        losses, loss, why = self._accumulate(rows, weight, phases, refusal)
        phases.enter("optimizer")
        norm = self.trainer.update(rate)
        phases.enter(None)
        figures = self._figures()
        mine = not np.isfinite(losses.sum())
        if why is not None:
            return Update(losses, loss, weight, norm, {}, f"the {self._what}loss {why}", mine)
        if not np.isfinite(norm):
            why = f"the {self._what}gradient norm is not finite"
            return Update(losses, loss, weight, norm, {}, why, True)
        return Update(losses, loss, weight, norm, figures)

    def _accumulate(
        self, rows: Any, weight: float, phases: Phases, refusal: Callable[[float], str | None]
    ) -> tuple[Floats, float, str | None]:
        """This rank's losses by row, the global one, and why it is refused, if it is."""
        losses: list[torch.Tensor] = []
        loss, why = 0.0, None
        for first in range(0, len(rows), self.micro_batch):
            last = first + self.micro_batch >= len(rows)
            phases.enter("forward")
            self.trainer.begin_micro_batch(last=last)
            losses_B = self.objective.losses(
                self.trainer.engine, rows.part(first, first + self.micro_batch), self.group.device
            )
            losses.append(losses_B.detach())
            if last:
                # Before the last backward pass it isn't too late: a gradient that isn't finite is applied
                # under no ZeRO stage, and cleared under each.
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

    def _figures(self) -> dict[str, float]:
        """The objective's tally over all ranks, as means."""
        return means(self.objective.metric_sums.drain(), self.group)

    @property
    def _what(self) -> str:
        return self.prefix.replace("/", "'s ")


def global_loss(nats: float, weight: float, group: WorkerGroup) -> float:
    """This rank's summed loss, and all others', over the global weight; NaN where a rank's isn't finite.
    Collective."""
    finite = bool(np.isfinite(nats))
    total, bad = group.sum(nats if finite else 0.0, not finite)
    return math.nan if bad else total / weight


def means(sums: dict[str, list[float]], group: WorkerGroup) -> dict[str, float]:
    """Numerators over denominators, both over all ranks; collective."""
    names = sorted(sums)
    if not names:
        return {}
    flat = group.sum(*(value for name in names for value in sums[name]))
    pairs = zip(names, flat[::2], flat[1::2], strict=True)
    return {name: total / weight for name, total, weight in pairs if weight > 0}
