"""Registry of recipes: the class of a job → the recipe that trains it."""

from __future__ import annotations

from typing import Any

from raymill.data.store.manifest import PreparedData
from raymill.engine.recipe import Recipe
from raymill.engine.resolved_run import ResolvedRun
from raymill.recipes.fine_tuning import FineTuning
from raymill.recipes.preference_tuning import PreferenceTuning
from raymill.recipes.pretraining import Pretraining
from raymill.recipes.reinforcement_learning import Reinforcement
from raymill.recipes.reward_modeling import RewardModeling
from raymill.schema.jobs import DpoJob, PretrainJob, RewardJob, RlhfJob, SftJob, TrainJob

RECIPES: dict[type[TrainJob], type[Recipe[Any]]] = {
    PretrainJob: Pretraining,
    SftJob: FineTuning,
    RewardJob: RewardModeling,
    DpoJob: PreferenceTuning,
    RlhfJob: Reinforcement,
}


def recipe_of(resolved: ResolvedRun, prepared: list[PreparedData]) -> Recipe[Any]:
    """Return the recipe that trains a resolved run's job."""
    return RECIPES[type(resolved.job)](resolved, resolved.job, prepared)
