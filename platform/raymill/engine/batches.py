"""Batches of a training step: the drawn rows themselves, or answers sampled for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from raymill.data.store.location import source_names
from raymill.data.store.manifest import PreparedData
from raymill.data.store.stream import StepBatch
from raymill.objective.objective import Objective, predicted_tokens

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class RowBatch(Protocol):
    """Rows of one update, of a type that the job's objective knows."""

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> Self:
        """Return the rows from `start` to `stop`."""
        ...


@dataclass(frozen=True)
class UpdateBatches:
    """Rows of one rank for each optimizer update of a step, in order.

    Every rank has equally many updates, with equally many rows in each. `tokens` and `sums` are this rank's:
    its tokens, and numerators and denominators of means by their logged names. `metrics` are of all ranks, and
    complete on rank 0, which logs them.
    """

    updates: Sequence[RowBatch]
    samples: Sequence[
        npt.NDArray[np.int64]
    ]  # per update: ids of the samples that its rows come from
    tokens: int
    sums: Mapping[str, Sequence[float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


class BatchBuilder(Protocol):
    """Source of the batches that a step trains on. Every rank calls every method, which may be collective."""

    @property
    def lookahead(self) -> bool:
        """True if `build_step` needs the next step's batch, too."""
        ...

    def build_step(
        self, batch: StepBatch, step: int, upcoming: StepBatch | None = None
    ) -> UpdateBatches:
        """Build the batches of step number `step` from the samples drawn for it."""
        ...

    def loss_sums(self, losses: Sequence[Floats], batch: StepBatch) -> dict[str, list[float]]:
        """Return numerators and denominators of means that follow from the losses by row, an array per update.

        They are this rank's, and have the same names on all.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint must keep, as JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint's state."""
        ...

    def close(self) -> None:
        """Stop the processes and threads that this started."""
        ...


@dataclass(frozen=True)
class DatasetBatches:
    """The drawn rows themselves, in one update."""

    objective: Objective
    prepared: list[PreparedData]

    @property
    def lookahead(self) -> bool:
        return False

    def build_step(
        self, batch: StepBatch, step: int, upcoming: StepBatch | None = None
    ) -> UpdateBatches:
        weight = self.objective.weight(batch.rows.unweighted())
        tokens = predicted_tokens(batch.rows)
        sums = {"perf/learned_share": (weight, float(tokens))}
        return UpdateBatches([batch.rows], [batch.sample_id], tokens, sums)

    def loss_sums(self, losses: Sequence[Floats], batch: StepBatch) -> dict[str, list[float]]:
        """Return each data source's own loss, where there are several sources."""
        names = source_names(self.prepared)
        if len(names) == 1:
            return {}
        by_source = {}
        for source, name in enumerate(names):
            of_source = batch.source == source
            nats = float(losses[0][of_source].sum())
            by_source[f"train/{name}/loss"] = [
                nats,
                self.objective.weight(batch.rows.take(of_source)),
            ]
        return by_source

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state."""

    def close(self) -> None:
        """Do nothing: there are no processes."""
