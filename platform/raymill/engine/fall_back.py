"""Fall back to the checkpoint before one in which some rank has found damage, all ranks together."""

from __future__ import annotations

from typing import NoReturn

from raymill.checkpoint.file_record import DamagedError
from raymill.checkpoint.remote import RemoteRun
from raymill.checkpoint.resume import set_damaged_aside
from raymill.engine.group import WorkerGroup, on_rank_zero
from raymill.engine.start import StartPoint
from raymill.errors import RewindError


def fall_back(
    start: StartPoint, error: DamagedError, group: WorkerGroup, remote: RemoteRun | None = None
) -> NoReturn:
    """Set the damaged checkpoint aside, and end this start of the workers; collective.

    Every rank has the error, because the ranks agree on how reading ended (`on_all_ranks`). New
    workers then resume from the checkpoint before: models that are half loaded, and a stream that is
    open already, are so rare a loss that they aren't worth a second way to start.

    Raises:
        RewindError: on all ranks: the run continues from the checkpoint before.
        CheckpointError: there is none, or another run's checkpoint is damaged, which isn't replaced.
    """
    checkpoint = start.checkpoint
    # An error of this rank alone must end the process, because the others wait for it.
    if not error.on_every_rank or not start.resumed or checkpoint is None:
        raise error
    aside = on_rank_zero(group, lambda: set_damaged_aside(checkpoint, error, remote))
    raise RewindError(f"passed over a damaged checkpoint: {error}; it is kept as {aside}")
