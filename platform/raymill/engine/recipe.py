"""What differs between the jobs that train: the model they start from, what they learn, and how they are
measured. The loop asks a recipe for these and knows nothing else of the job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch

from raymill.data.store.manifest import Prepared
from raymill.engine.batches import BatchBuilder, DatasetBatches
from raymill.engine.evaluation import Evaluator
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.engine.learner import Learner
from raymill.engine.resolved_run import ResolvedRun
from raymill.objective.objective import Objective
from raymill.schema.jobs import TrainJob

J = TypeVar("J", bound=TrainJob)


@dataclass(frozen=True)
class Recipe(ABC, Generic[J]):
    """One kind of training; `job` is the assignment's."""

    resolved: ResolvedRun
    job: J
    prepared: list[Prepared]
    attention_key: ClassVar[str] = "attention"

    @property
    def packing_key(self) -> str | None:
        """The key with which sequences that mustn't see each other share a row; None where none do."""
        return None

    @property
    def samples(self) -> bool:
        """Tell whether the model itself answers while it is trained, as transformers computes it."""
        return False

    @abstractmethod
    def build_model(self, fresh: bool) -> torch.nn.Module:
        """The model in fp32 on the host, the same on every rank. Where it isn't `fresh`, a checkpoint's
        trainable parameters are put into it next."""

    @abstractmethod
    def objective(self, model: Any, group: WorkerGroup) -> Objective:
        """What is learned."""

    @abstractmethod
    def evaluators(
        self,
        learners: list[Learner],
        experience: BatchBuilder,
        group: WorkerGroup,
        event_log: EventLog | None,
    ) -> list[Evaluator]:
        """What is measured, in this order. `event_log` is rank 0's."""

    @abstractmethod
    def flops_per_token(self, model: torch.nn.Module) -> float:
        """Forward and backward FLOPs of one token, as MFU counts them."""

    def build_critic(self) -> torch.nn.Module | None:
        """A second model that learns beside the first, where the job has one."""
        return None

    def critic_objective(self, model: Any, group: WorkerGroup) -> Objective:
        """What the critic learns."""
        raise NotImplementedError

    def critic_learning_rate(self) -> float:
        """Its peak learning rate."""
        raise NotImplementedError

    def parent_work(self) -> Callable[[Any, WorkerGroup], None] | None:
        """What must be computed with the parent's own weights before training: it is given a model that
        has them. Collective."""
        return None

    def experience(
        self, learners: list[Learner], group: WorkerGroup, event_log: EventLog | None
    ) -> BatchBuilder:
        """What is learned from in a step: the rows that were drawn, unless the job makes others of
        them."""
        return DatasetBatches(learners[0].objective, group, self.prepared)
