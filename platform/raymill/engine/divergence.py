"""What follows an update that wasn't made: the run stops, goes on, or goes back, on all ranks alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raymill.engine.checkpoints import Checkpoints
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.engine.guard import Guard, leave_out
from raymill.engine.learner import Update
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.start import StartPoint
from raymill.errors import NonFiniteError, RewindError


@dataclass(frozen=True)
class Divergence:
    """Collective: every rank calls it for the same update."""

    guard: Guard
    resolved: ResolvedRun
    start: StartPoint
    checkpoints: Checkpoints
    group: WorkerGroup
    event_log: EventLog | None

    def follow(
        self, update: Update, model: str, own: npt.NDArray[np.int64], step: int, first: int
    ) -> None:
        """Note whose samples `model` would have learned from, and go on, or don't. `step` is the one under
        way, `first` its first global sample, `own` those of this rank's rows.

        Raises:
            NonFiniteError: the run ends.
            RewindError: it goes back to its last checkpoint.
        """
        told = self.group.gather((own.tolist(), update.mine))
        guilty = [rank for rank, (_, mine) in enumerate(told) if mine] or list(range(len(told)))
        samples = sorted(sample for rank in guilty for sample in told[rank][0])
        what = (
            f"{update.refused} in step {step} (rank {', '.join(map(str, guilty))}; global samples "
            f"{ranges(samples)})"
        )
        if self.event_log is not None:
            by_rank = [sorted(ids) for ids, _ in told]
            self.event_log.write("refused", step, text=what, samples_by_rank=by_rank)
        config, last = self.guard.config, first + self.resolved.job.train.global_batch - 1
        if config.policy == "stop":
            raise NonFiniteError(f"{what}; that update wasn't made, and the last checkpoint stands")
        if config.policy == "rewind":
            self._rewind(what, step, last)
        if not self.guard.skip(model, first, last):
            raise NonFiniteError(
                f"{what}; {self.guard.in_a_row[model]} updates in a row weren't made "
                f"(guard.max_consecutive={config.max_consecutive}), and the last checkpoint stands"
            )
        if self.event_log is not None:
            self.event_log.write("message", step, text=f"{what}; that update was skipped")

    def _rewind(self, what: str, step: int, last: int) -> None:
        """Have the run start again from its last checkpoint, past the samples up to `last`.

        Raises:
            RewindError: always, but where that was done often enough.
            NonFiniteError: it was.
        """
        self.checkpoints.settle(step, wait=True)
        committed = self.checkpoints.committed
        windows = self.start.windows if committed == self.start.consumed else ()
        most = self.guard.config.max_consecutive
        if len(windows) >= most:
            raise NonFiniteError(
                f"{what}; the run has gone back to its last checkpoint {len(windows)} times since "
                f"(guard.max_consecutive={most}), which stands"
            )
        first = windows[-1][1] + 1 if windows else committed
        if self.event_log is not None:
            leave_out(self.resolved.run_dir, first, last, what)
        raise RewindError(
            f"{what}; back to the last checkpoint, and past the samples {first}-{last} since"
        )


def ranges(numbers: list[int]) -> str:
    """[3, 4, 5, 9] → "3-5, 9"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
