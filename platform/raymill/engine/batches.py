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
from raymill.engine.group import WorkerGroup
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

    Every rank has equally many updates, with equally many rows in each. `tokens` and `metrics` are of all
    ranks, and the same on all.
    """

    updates: Sequence[RowBatch]
    samples: Sequence[
        npt.NDArray[np.int64]
    ]  # per update: ids of the samples that its rows come from
    tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class BatchBuilder(Protocol):
    """Source of the batches that a step trains on. Every method is collective."""

    @property
    def lookahead(self) -> bool:
        """True if `build_step` needs the next step's batch, too."""
        ...

    def build_step(
        self, batch: StepBatch, step: int, upcoming: StepBatch | None = None
    ) -> UpdateBatches:
        """Build the batches of step number `step` from the samples drawn for it."""
        ...

    def loss_metrics(self, losses: Sequence[Floats], batch: StepBatch) -> dict[str, float]:
        """Return metrics that follow from the losses by row, one array per update."""
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
    group: WorkerGroup
    prepared: list[PreparedData]

    @property
    def lookahead(self) -> bool:
        return False

    def build_step(
        self, batch: StepBatch, step: int, upcoming: StepBatch | None = None
    ) -> UpdateBatches:
        weight, tokens = self.group.sum(
            self.objective.weight(batch.rows.unweighted()), predicted_tokens(batch.rows)
        )
        metrics = {"perf/learned_share": weight / tokens}
        return UpdateBatches([batch.rows], [batch.sample_id], int(tokens), metrics)

    def loss_metrics(self, losses: Sequence[Floats], batch: StepBatch) -> dict[str, float]:
        """Return each data source's own loss, where there are several sources."""
        names = source_names(self.prepared)
        if len(names) == 1:
            return {}
        sums = []
        for source in range(len(names)):
            of_source = batch.source == source
            sums += [
                float(losses[0][of_source].sum()),
                self.objective.weight(batch.rows.take(of_source)),
            ]
        sums = self.group.sum(*sums)
        return {
            f"train/{name}/loss": sums[2 * source] / sums[2 * source + 1]
            for source, name in enumerate(names)
            if sums[2 * source + 1] > 0
        }

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state."""

    def close(self) -> None:
        """Do nothing: there are no processes."""
