"""From what was drawn in a step to what is learned from: given rows as they are, or answers that are
sampled for them now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from raymill.data.store.manifest import PreparedData
from raymill.data.store.stream import StepBatch
from raymill.engine.group import WorkerGroup
from raymill.engine.source_names import source_names
from raymill.objective.objective import Objective, predicted_tokens

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gathered:
    """A step's material: this rank's rows of each update, one after the other.

    Every rank has as many updates, and as many rows in each. `tokens` is over all ranks, `figures` are
    the same on all.
    """

    updates: Sequence[Any]
    samples: Sequence[npt.NDArray[np.int64]]  # whose rows each update has, on this rank
    tokens: int
    figures: Mapping[str, float] = field(default_factory=dict)


class BatchBuilder(Protocol):
    """Where a step's material comes from. Every method is collective."""

    @property
    def lookahead(self) -> bool:
        """Whether `build_step` wants to see the next step's batch too."""
        ...

    def build_step(
        self, batch: StepBatch, step: int, upcoming: StepBatch | None = None
    ) -> Gathered:
        """Make the material of step number `step`."""
        ...

    def learned(self, losses: Sequence[Floats], batch: StepBatch) -> dict[str, float]:
        """Figures that follow from the rows' losses, update by update."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep, as JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        ...

    def close(self) -> None:
        """End whatever was started."""
        ...


@dataclass(frozen=True)
class DatasetBatches:
    """The rows themselves, in one update."""

    objective: Objective
    group: WorkerGroup
    prepared: list[PreparedData]

    @property
    def lookahead(self) -> bool:
        return False

    def build_step(
        self, batch: StepBatch, step: int, upcoming: StepBatch | None = None
    ) -> Gathered:
        learned, tokens = self.group.sum(
            self.objective.weight(batch.rows.unweighted()), predicted_tokens(batch.rows)
        )
        figures = {"perf/learned_share": learned / tokens}
        return Gathered([batch.rows], [batch.sample_id], int(tokens), figures)

    def learned(self, losses: Sequence[Floats], batch: StepBatch) -> dict[str, float]:
        """Each data source's own loss, where there are several."""
        names = source_names(self.prepared)
        if len(names) == 1:
            return {}
        sums = []
        for source in range(len(names)):
            mine = batch.source == source
            sums += [
                float(losses[0][mine].sum()),
                self.objective.weight(batch.rows.take(mine)),
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
        """There is nothing to go on from."""

    def close(self) -> None:
        """Nothing was started."""
