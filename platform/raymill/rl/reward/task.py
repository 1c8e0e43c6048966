"""Input and output of reward functions: samples, scores and time limits."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymill.errors import RaymillError
from raymill.evaluate.reasoning import after_reasoning

# Time between a call's limit, by which a function that can stop itself has done so, and the kill of its
# process. Much longer than a busy machine delays a process; otherwise the kill could come before the
# function's own stop.
GRACE_S = 2.0
_ERROR_CHARACTERS = 500


class RewardError(RaymillError):
    """A sample has no reward, or rewards can't be computed at all.

    The message begins with a short cause and a colon; dropped samples are counted by that cause.
    """


@dataclass(frozen=True)
class Sample:
    """Answer to be rewarded, with its prompt and the data of the prompt's record.

    `answer_ids`: the sampled tokens, including the one that ended the turn. `reference`, `verifier` and
    `extra` come from the prompt's record. `finished`: the model ended its turn itself. `in_reasoning`: the
    prompt opened reasoning, as some templates do, so that the answer begins inside it.
    """

    prompt_messages: tuple[dict[str, Any], ...]
    answer_text: str
    answer_ids: tuple[int, ...]
    reference: str | None = None
    verifier: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    finished: bool = True
    in_reasoning: bool = False

    @property
    def final_text(self) -> str:
        """The answer's text after its reasoning, which is compared with a reference."""
        return after_reasoning(self.answer_text, self.in_reasoning)

    @property
    def said(self) -> str:
        """Earlier name of `final_text`, kept for users' reward functions."""
        return self.final_text


@dataclass(frozen=True)
class Score:
    """Result of a function for a sample: a finite value, or an error."""

    value: float | None
    error: str | None
    seconds: float

    @property
    def cause(self) -> str | None:
        """Beginning of the error, by which errors are counted."""
        return None if self.error is None else self.error.partition(":")[0]


def failed_score(error: str, seconds: float = 0.0) -> Score:
    """Return a score without a value; the error is cut to a length that can be logged."""
    return Score(None, error[:_ERROR_CHARACTERS], seconds)


def score_of(value: object, seconds: float) -> Score:
    """Convert a function's return value to a score: a finite number, or an error.

    Anything with `__float__` is a number: Python's, NumPy's, and tensors of one element.
    """
    if not hasattr(type(value), "__float__"):
        return failed_score(f"not a number: returned {type(value).__name__}", seconds)
    try:
        number = float(value)  # type: ignore[arg-type]
    # A tensor of two elements raises one of these.
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        return failed_score(f"not a number: returned {type(value).__name__} ({error})", seconds)
    if not math.isfinite(number):
        return failed_score(f"not finite: returned {number}", seconds)
    return Score(number, None, seconds)


_deadline = math.inf


def limit_call(seconds: float) -> None:
    """Limit the time of the call that starts now; workers do this before each call."""
    global _deadline
    _deadline = time.monotonic() + seconds


def time_left_s() -> float:
    """Return the remaining time of the running call; infinite outside a pool.

    A function that can stop with a result should do so within it: GRACE_S later its process is killed.
    """
    return _deadline - time.monotonic()
