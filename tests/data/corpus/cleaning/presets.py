"""Steps as the presets of `conf/data/cleaning` declare them."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, TypeVar

from raymill.config.compose import load
from raymill.data.corpus.cleaning.declared import declared_steps
from raymill.data.corpus.cleaning.step import DeclaredStep
from raymill.data.corpus.draft import Draft

Step = TypeVar("Step")


@cache
def preset(name: str) -> dict[str, DeclaredStep]:
    job = load("prepare", ["data=files", "data.path=.", f"data/cleaning={name}"])
    problems: list[str] = []
    steps = declared_steps(job.data.cleaning, problems)
    assert problems == []
    return {step.key: step for step in steps}


def step_of(name: str, key: str) -> Any:
    return preset(name)[key].step


def alone(step: Step, *rules: str) -> Step:
    """Return the step with its bounds switched off but for some."""
    fields = dataclasses.fields(step)  # type: ignore[arg-type]
    off = {
        field.name: None
        for field in fields
        if field.name not in rules and "None" in str(field.type)
    }
    return dataclasses.replace(step, **off)  # type: ignore[type-var]


def reason(step: Any, text: str, language: str = "en") -> str | None:
    outcome: str | None = step.apply(Draft(text, "web", language=language))
    return outcome
