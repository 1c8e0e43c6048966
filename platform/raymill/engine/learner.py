"""A model that learns, with what it learns: one optimizer update over a rank's rows.

A job has one learner, or two where a critic learns beside the policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raymill.engine.group import WorkerGroup
from raymill.engine.trainer import Trainer
from raymill.objective.objective import Objective

Floats = npt.NDArray[np.float64]


@dataclass
class Phases:
    """Seconds of one step by what they were spent on."""

    data: float = 0.0
    gather: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0


@dataclass(frozen=True)
class Update:
    """What an update came to: this rank's losses by row, and the global figures."""

    losses: Floats  # [B]
    loss: float  # over the global weight
    weight: float
    norm: float
    figures: dict[str, float]


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
        self, rows: Any, rate: float, phases: Phases, refuse: Callable[[str, bool], Exception]
    ) -> Update:
        """Forward, backward and one optimizer step over this rank's rows; collective.

        Where nothing carries weight on any rank, nothing is updated. `refuse(what, mine)` makes the
        error for a value that isn't finite, the same on all ranks.
        """
        [weight] = self.group.sum(self.objective.weight(rows))
        if weight == 0:
            self.objective.tally.drain()
            return Update(np.zeros(len(rows)), 0.0, 0.0, 0.0, {})
        losses = self._accumulate(rows, weight, phases)
        loss = global_loss(
            float(losses.sum()), weight, self.group, partial(refuse, f"the {self._what}loss")
        )
        began = time.perf_counter()
        norm = self.trainer.update(rate)
        phases.optimizer += time.perf_counter() - began
        if not np.isfinite(norm):
            raise refuse(f"the {self._what}gradient norm", True)
        return Update(losses, loss, weight, norm, self._figures())

    def _accumulate(self, rows: Any, weight: float, phases: Phases) -> Floats:
        losses = []
        for first in range(0, len(rows), self.micro_batch):
            began = time.perf_counter()
            self.trainer.begin_micro_batch(last=first + self.micro_batch >= len(rows))
            losses_B = self.objective.losses(
                self.trainer.engine, rows.part(first, first + self.micro_batch), self.group.device
            )
            losses.append(losses_B.detach())
            forwarded = time.perf_counter()
            self.trainer.backward(losses_B.sum(), weight)
            phases.forward += forwarded - began
            phases.backward += time.perf_counter() - forwarded
        return torch.cat(losses).double().cpu().numpy()

    def _figures(self) -> dict[str, float]:
        """The objective's tally over all ranks, as means."""
        return means(self.objective.tally.drain(), self.group)

    @property
    def _what(self) -> str:
        return self.prefix.replace("/", "'s ")


def global_loss(
    nats: float, weight: float, group: WorkerGroup, refuse: Callable[[bool], Exception]
) -> float:
    """This rank's summed loss, and all others', over the global weight; collective.

    `refuse(mine)` makes the error where a rank's is not finite, on all ranks.
    """
    finite = bool(np.isfinite(nats))
    total, bad = group.sum(nats if finite else 0.0, not finite)
    if bad:
        raise refuse(not finite)
    return total / weight


def means(sums: dict[str, list[float]], group: WorkerGroup) -> dict[str, float]:
    """Numerators over denominators, both over all ranks; collective."""
    names = sorted(sums)
    if not names:
        return {}
    flat = group.sum(*(value for name in names for value in sums[name]))
    pairs = zip(names, flat[::2], flat[1::2], strict=True)
    return {name: total / weight for name, total, weight in pairs if weight > 0}
