"""The sections about a run's life: who it is, when it is committed, and what follows when something fails."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RunConfig:
    """Who this run is. The same name under the same storage root resumes."""

    name: str | None = None  # None: from the configuration's digest
    seed: int = 1234
    from_: str | None = None  # "<run name>@<step>" forks a run from its checkpoint
    workers: int | str = 1  # or least..most, as in 2..8: as many as there is room for
    max_failures: int = 3  # in a row, without a new checkpoint, from which the run goes on

    @property
    def least(self) -> int:
        """Workers without which the run doesn't start."""
        return self._range()[0]

    @property
    def most(self) -> int:
        """Workers beyond which it doesn't grow."""
        return self._range()[1]

    def _range(self) -> tuple[int, int]:
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", str(self.workers))
        if match is None:
            return 0, 0  # which is refused
        return int(match[1]), int(match[2] or match[1])


@dataclass(frozen=True)
class AuditedRun:
    """The run that is looked at."""

    name: str | None = None  # which must be given


@dataclass(frozen=True)
class CheckpointConfig:
    """When state is committed, and what is kept."""

    every: int = 100  # steps; the last step is always committed
    keep_last: int = 2
    keep_every: int = 0  # steps; a multiple of it is kept for ever. 0: none


@dataclass(frozen=True)
class GuardConfig:
    """What follows a loss or gradient that isn't finite, or a spike of the loss."""

    # stop: the run ends before the update. skip: that update isn't made. rewind: back to the last
    # checkpoint, and past the samples since.
    policy: Literal["stop", "skip", "rewind"] = "stop"
    spike_z: float | None = (
        None  # robust standard deviations above the last losses that count as a spike
    )
    most_in_a_row: int = 3  # skips, or rewinds to one checkpoint, beyond which the run ends


@dataclass(frozen=True)
class WatchdogConfig:
    """When a rank that makes no progress is ended, and the run restarted."""

    timeout_s: float | None = None  # None: 20 median steps, at least 120 s
