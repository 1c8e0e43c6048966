"""What the driver hands every worker: everything that was decided before the workers started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raymill.checkpoint.remote import RemoteRun
from raymill.schema.jobs import TrainJob


@dataclass(frozen=True)
class ResolvedRun:
    """A resolved training job; all paths are absolute, since Ray's workers change directory."""

    job: TrainJob
    run_dir: Path
    runs: Path  # the folder of all runs, for forks
    folders: tuple[Path, ...]  # prepared data
    weights: tuple[float, ...]  # of the mixture, one a folder
    total_steps: int
    config: Mapping[str, Any]  # flattened, as the user types the keys
    config_digest: str
    code_commit: str | None = None
    model_folder: Path | None = None  # what `model=` or `parent=` resolved to
    parent: str | None = None  # and its name, pinned to a version
    parent_digest: str | None = None  # and of its weights
    reward_folder: Path | None = None  # what `reward.model=` resolved to
    reward: str | None = None
    # Key → digest of the weights of what else the run stands on: the reward model, the critic's start.
    model_digests: Mapping[str, str] = field(default_factory=dict)
    critic_folder: Path | None = None  # what a critic starts from
    places: tuple[Any, ...] = ()  # where Ray is to put samplers, then reward models
    forgetting: Path | None = None  # prepared text that tells what fine-tuning forgets
    memory_plan: str = ""  # a worker's, for who asks why it ran out
    token: int = 0  # of the lease under which this process writes the run
    start: int = 0  # which start of workers by this process it is
    uri: str | None = None  # the run's place in an object store, if it is kept in one

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def remote(self) -> RemoteRun | None:
        """The run as the object store has it."""
        return None if self.uri is None else RemoteRun(self.uri, self.token, self.start)

    @property
    def event_log(self) -> Path:
        return self.run_dir / "metrics.jsonl"

    @property
    def pulses(self) -> Path:
        """Where each rank of this start leaves its sign of life."""
        return self.run_dir / "pulse" / f"{self.token}.{self.start}"

    @property
    def stop_request(self) -> Path:
        """A file whose existence asks this holder's workers to commit and stop."""
        return self.run_dir / f"stop-requested-{self.token}"
