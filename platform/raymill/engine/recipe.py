"""What differs between the jobs that train: the model they start from, what they learn, and how they are
measured. The loop asks a recipe for these and knows nothing else of the job."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from raymill.config.schema import PretrainJob, SftJob
from raymill.data.manifest import Prepared
from raymill.engine.assignment import Assignment
from raymill.engine.evaluation import Evaluator
from raymill.engine.group import WorkerGroup
from raymill.engine.journal import Journal
from raymill.objective.objective import Objective


class Recipe(Protocol):
    """One kind of training."""

    def build_model(self, fresh: bool) -> torch.nn.Module:
        """The model in fp32 on the host, the same on every rank. Where it isn't `fresh`, a checkpoint's
        trainable parameters are put into it next."""
        ...

    def objective(self, model: Any) -> Objective:
        """What is learned."""
        ...

    def evaluators(
        self, model: Any, group: WorkerGroup, journal: Journal | None
    ) -> list[Evaluator]:
        """What is measured, in this order. `journal` is rank 0's."""
        ...

    def flops_per_token(self, model: torch.nn.Module) -> float:
        """Forward and backward FLOPs of one token, as MFU counts them."""
        ...


def recipe_of(assignment: Assignment, prepared: list[Prepared]) -> Recipe:
    """The recipe of an assignment's job."""
    from raymill.engine.fine_tuning import FineTuning
    from raymill.engine.pretraining import Pretraining

    job = assignment.job
    if isinstance(job, PretrainJob):
        return Pretraining(assignment, job, prepared)
    if isinstance(job, SftJob):
        return FineTuning(assignment, job, prepared)
    raise TypeError(f"no recipe for {type(job).__name__}")
