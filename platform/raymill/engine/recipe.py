"""The interface between the training loop and the kinds of training.

A recipe says which models are trained, on which loss, and how they are evaluated. The loop asks a recipe for
these and knows nothing else of the job.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import torch

from raymill.data.store.manifest import PreparedData
from raymill.engine.batches import BatchBuilder, DatasetBatches
from raymill.engine.evaluation import Evaluator
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.engine.learner import Learner
from raymill.engine.resolved_run import ResolvedRun
from raymill.model.blueprint import Blueprint
from raymill.objective.objective import Objective
from raymill.schema.jobs import TrainJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel

J = TypeVar("J", bound=TrainJob)
ParentWork = Callable[["PreTrainedModel", WorkerGroup], None]


@dataclass(frozen=True)
class LearnerSpec:
    """A model to train, its loss, and its peak learning rate.

    `plan_model(fresh)` returns the model before it has memory, the same on every rank; where it isn't fresh,
    its trained parameters get a checkpoint's weights next. `prefix` stands before the names of its
    parameters in checkpoints and of its metrics: "" or "critic/".
    """

    plan_model: Callable[[bool], Blueprint]
    objective: Callable[[PreTrainedModel, WorkerGroup], Objective]
    learning_rate: float
    prefix: str = ""


@dataclass(frozen=True)
class Recipe(ABC, Generic[J]):
    """One kind of training. `job` is the resolved run's job, as its own class."""

    resolved: ResolvedRun
    job: J
    prepared: list[PreparedData]
    attention_key: ClassVar[str] = "attention"

    @property
    def packing_key(self) -> str | None:
        """Key by which sequences that must not see each other share a row; None where none do."""
        return None

    @property
    def samples(self) -> bool:
        """Tell whether the trained model itself generates text, as transformers computes it."""
        return False

    def learners(self) -> list[LearnerSpec]:
        """The models to train, the policy first."""
        return [LearnerSpec(self.plan_model, self.objective, self.job.optim.learning_rate)]

    @abstractmethod
    def plan_model(self, fresh: bool) -> Blueprint:
        """Plan the first model, as `LearnerSpec` says."""

    @abstractmethod
    def objective(self, model: PreTrainedModel, group: WorkerGroup) -> Objective:
        """Return the loss of the first model."""

    @abstractmethod
    def evaluators(
        self,
        learners: list[Learner],
        batch_builder: BatchBuilder,
        group: WorkerGroup,
        event_log: EventLog | None,
    ) -> list[Evaluator]:
        """Return the evaluations, in the order in which they run. `event_log` is rank 0's."""

    @abstractmethod
    def flops_per_token(self, model: torch.nn.Module) -> float:
        """Count forward and backward FLOPs per token, as MFU counts them."""

    def parent_work(self) -> ParentWork | None:
        """Return the work to do with the parent's own weights before training; None where there is none.

        It is called with a model that has these weights. Collective.
        """
        return None

    def batch_builder(
        self, learners: list[Learner], group: WorkerGroup, event_log: EventLog | None
    ) -> BatchBuilder:
        """Return the builder of each step's batch; by default, of the rows as they are drawn."""
        # Only reinforcement learning builds its batches otherwise: from answers to the drawn prompts.
        return DatasetBatches(learners[0].objective, self.prepared)
