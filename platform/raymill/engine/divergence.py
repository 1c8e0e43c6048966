"""Consequences of a refused update: the run stops, skips the update or rewinds, on all ranks alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raymill.engine.batches import Ints
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
    """Applies the guard's policy. Collective: every rank calls it for the same update."""

    guard: Guard
    resolved: ResolvedRun
    start: StartPoint
    checkpoints: Checkpoints
    group: WorkerGroup
    event_log: EventLog | None

    def handle(self, update: Update, model: str, samples: Ints, step: int, first: int) -> None:
        """Log a refused update of `model` and apply the policy.

        `step` is the step under way, `first` its first global sample, `samples` those of this rank's rows.

        Raises:
            NonFiniteError: the run ends.
            RewindError: the run goes back to its last checkpoint.
        """
        ranks = self.group.gather((samples, update.local))
        # A gradient that isn't finite can't be traced to a rank: then all of them are named.
        culprits = [rank for rank, (_, local) in enumerate(ranks) if local]
        culprits = culprits or list(range(len(ranks)))
        suspects = np.sort(np.concatenate([ranks[rank][0] for rank in culprits])).tolist()
        what = (
            f"{update.refused} in step {step} (rank {', '.join(map(str, culprits))}; global samples "
            f"{format_ranges(suspects)})"
        )
        # The samples are logged for every policy, so that a bad record can be found later.
        if self.event_log is not None:
            by_rank = [np.sort(ids).tolist() for ids, _ in ranks]
            self.event_log.write("refused", step, text=what, samples_by_rank=by_rank)
        config, last = self.guard.config, first + self.resolved.job.train.global_batch - 1
        if config.policy == "stop":
            raise NonFiniteError(f"{what}; that update wasn't made, and the last checkpoint stands")
        if config.policy == "rewind":
            self._rewind(what, step, last)
        if not self.guard.record_skip(model, first, last):
            raise NonFiniteError(
                f"{what}; {self.guard.consecutive[model]} updates in a row weren't made "
                f"(guard.max_consecutive={config.max_consecutive}), and the last checkpoint stands"
            )
        if self.event_log is not None:
            self.event_log.write("message", step, text=f"{what}; that update was skipped")

    def _rewind(self, what: str, step: int, last: int) -> None:
        """Restart the run from its last checkpoint, passing over the samples up to `last`.

        Raises:
            RewindError: always, unless the limit of rewinds from one checkpoint is reached.
            NonFiniteError: that limit is reached.
        """
        self.checkpoints.settle(step, wait=True)
        committed = self.checkpoints.committed
        # Windows count only while the run still stands at the checkpoint that they follow.
        windows = self.start.windows if committed == self.start.consumed else ()
        limit = self.guard.config.max_consecutive
        if len(windows) >= limit:
            raise NonFiniteError(
                f"{what}; the run has gone back to its last checkpoint {len(windows)} times since "
                f"(guard.max_consecutive={limit}), which stands"
            )
        first = windows[-1][1] + 1 if windows else committed
        # Rank 0 writes for all; the ranks read the windows when the run starts again.
        if self.event_log is not None:
            leave_out(self.resolved.run_dir, first, last, what)
        raise RewindError(
            f"{what}; back to the last checkpoint, and past the samples {first}-{last} since"
        )


def format_ranges(numbers: list[int]) -> str:
    """Format [3, 4, 5, 9] as "3-5, 9"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
