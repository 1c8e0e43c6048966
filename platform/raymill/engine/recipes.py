"""The recipe of every kind of job."""

from __future__ import annotations

from typing import Any

from raymill.config.schema import DpoJob, PretrainJob, RewardJob, RlhfJob, SftJob, TrainJob
from raymill.data.manifest import Prepared
from raymill.engine.assignment import Assignment
from raymill.engine.fine_tuning import FineTuning
from raymill.engine.preference_tuning import PreferenceTuning
from raymill.engine.pretraining import Pretraining
from raymill.engine.recipe import Recipe
from raymill.engine.reinforcement import Reinforcement
from raymill.engine.reward_modelling import RewardModelling

RECIPES: dict[type[TrainJob], type[Recipe[Any]]] = {
    PretrainJob: Pretraining,
    SftJob: FineTuning,
    RewardJob: RewardModelling,
    DpoJob: PreferenceTuning,
    RlhfJob: Reinforcement,
}


def recipe_of(assignment: Assignment, prepared: list[Prepared]) -> Recipe[Any]:
    """The recipe of an assignment's job."""
    return RECIPES[type(assignment.job)](assignment, assignment.job, prepared)
