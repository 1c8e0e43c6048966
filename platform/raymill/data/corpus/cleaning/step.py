"""Interface of a step of cleaning, the registry of all steps, and an entry of `data.cleaning`.

A step is a frozen dataclass whose fields are its parameters, as a preset of `conf/data/cleaning` states them;
it inherits from `CleaningStep`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from raymill.data.corpus.draft import Draft


class CleaningStep(Protocol):
    """Step of cleaning. `follows` names the paper or program whose rule it is."""

    name: ClassVar[str]
    follows: ClassVar[str]

    def apply(self, draft: Draft) -> str | None:
        """Change the draft or note signals; return the reason to drop it, a short constant, or None.

        Signals are named `<step>.<measurement>`. A step may stop at the first reason.
        """
        ...

    def annotate(self, draft: Draft) -> None:
        """Note the signals of the step, and leave the text alone.

        Steps that stop measuring at the first reason to drop note all signals here.
        """
        trial = copy.copy(draft)
        trial.signals = {}
        self.apply(trial)
        draft.signals.update(trial.signals)


@dataclass(frozen=True)
class DeclaredStep:
    """Entry of `data.cleaning`: a step under its key, with other parameters for some languages.

    `languages` holds, by language code, the step with the parameters that the entry's `languages` overrides.
    `max_dropped` is the share of a source's documents above which the preparation stops.
    """

    key: str
    step: CleaningStep
    languages: Mapping[str, CleaningStep]
    annotate: bool
    max_dropped: float

    def clean(self, draft: Draft) -> str | None:
        """Apply the step of the draft's language; return the reason to drop the draft, or None."""
        step = self.languages.get(draft.language, self.step)
        if self.annotate:
            step.annotate(draft)
            return None
        return step.apply(draft)


STEPS: dict[str, type[CleaningStep]] = {}
StepType = TypeVar("StepType", bound=type[CleaningStep])


def register(step: StepType) -> StepType:
    """Add a class to the steps that a configuration can name; a decorator."""
    assert step.name not in STEPS, f"two steps are named {step.name}"
    STEPS[step.name] = step
    return step
