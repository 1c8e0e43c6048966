"""Interface of a step of cleaning, and the registry of all steps.

A step is a frozen dataclass whose fields are its parameters, as a preset of `conf/data/cleaning` states them.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, TypeVar

from raymill.data.corpus.draft import Draft


class CleaningStep(Protocol):
    """Step of cleaning. `follows` names the paper or program whose rule it is."""

    name: ClassVar[str]
    follows: ClassVar[str]

    def apply(self, draft: Draft) -> str | None:
        """Change the draft or note signals; return the reason to drop it, a short constant, or None."""
        ...


STEPS: dict[str, type[CleaningStep]] = {}
StepType = TypeVar("StepType", bound=type[CleaningStep])


def register(step: StepType) -> StepType:
    """Add a class to the steps that a configuration can name; a decorator."""
    assert step.name not in STEPS, f"two steps are named {step.name}"
    STEPS[step.name] = step
    return step
