"""Everything that the driver decides before the workers start, as it is sent to each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.checkpoint.remote import RemoteRun
from raymill.durable import sha256_text
from raymill.schema.jobs import TrainJob

if TYPE_CHECKING:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@dataclass(frozen=True)
class ResolvedRl:
    """The part of a resolved run that reinforcement learning alone has."""

    reward_model: str | None = None  # name of `reward.model=`, pinned to a version
    reward_folder: Path | None = None
    critic_folder: Path | None = None  # initial weights of the critic; None: there is no critic
    # Key → digest of the weights: of the reward model, and of the critic's initial ones.
    model_digests: Mapping[str, str] = field(default_factory=dict)
    step_timeout_s: float = 0.0  # within which a step's answers are sampled and rewarded
    # Ray's, of the rollout actors and then of the reward models' actors.
    scheduling_strategies: tuple[PlacementGroupSchedulingStrategy, ...] = ()


@dataclass(frozen=True)
class ResolvedRun:
    """A resolved training job. All paths are absolute, since Ray's workers change directory."""

    job: TrainJob
    run_dir: Path
    runs: Path  # the folder of all runs, for forks
    folders: tuple[Path, ...]  # prepared data
    weights: tuple[float, ...]  # of the mixture, one per folder
    total_steps: int
    config: Mapping[str, object]  # flattened, as the user types the keys
    config_digest: str
    code_commit: str | None = None
    model_folder: Path | None = None  # of the model that training starts from, if there is one
    parent: str | None = None  # its name, pinned to a version, or `run:NAME@STEP` of a fork
    parent_digest: str | None = None  # of its weights
    rl: ResolvedRl | None = None
    forgetting: Path | None = None  # prepared text on which fine-tuning's forgetting is measured
    memory_plan: str = ""  # of a worker, for the message when one runs out of memory
    worker_bytes: float = 0.0  # planned host memory of a worker; 0: unknown
    token: int = 0  # of the lease under which this process writes the run
    start: int = 0  # number of this start of workers, counted by this process
    uri: str | None = None  # of the run in an object store, if it is kept in one

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def remote(self) -> RemoteRun | None:
        """The run's copy in the object store."""
        return None if self.uri is None else RemoteRun(self.uri, self.token, self.start)

    def remote_of(self, name: str) -> RemoteRun | None:
        """Return another run's copy in the object store, where runs are kept in one."""
        return None if self.uri is None else RemoteRun(f"{self.job.storage.uri}/runs/{name}")

    @property
    def event_log(self) -> Path:
        return self.run_dir / "metrics.jsonl"

    @property
    def pulses(self) -> Path:
        """Folder of this start's failure notes, one file per failed rank."""
        return self.run_dir / "pulse" / f"{self.token}.{self.start}"

    @property
    def start_name(self) -> str:
        """Name of this start that no other run's start has, for `heartbeat_folder`."""
        return f"{sha256_text(str(self.run_dir))[:16]}-{self.token}.{self.start}"

    @property
    def stop_request(self) -> Path:
        """A file whose existence asks this lease's workers to commit and stop."""
        return self.run_dir / f"stop-requested-{self.token}"

    @property
    def model_digests(self) -> Mapping[str, str]:
        """Key → digest of the weights of the models, besides the parent, that the run depends on."""
        return {} if self.rl is None else self.rl.model_digests
