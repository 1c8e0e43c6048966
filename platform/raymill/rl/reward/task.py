"""What a reward is computed from, and what comes back. Everything else in this room builds on it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymill.errors import RaymillError
from raymill.evaluate.reasoning import after_reasoning

# Between the end of a call's time, by which a function that can stop itself has, and the end of its process.
# Long beside what a busy machine keeps a process waiting, or the second limit would come before the first.
GRACE_S = 2.0
_ERROR_CHARACTERS = 500


class RewardError(RaymillError):
    """A sample has no reward, or rewards can't be had at all.

    The message begins with a short cause and a colon: dropped samples are counted by it.
    """


@dataclass(frozen=True)
class Sample:
    """One answer, with what is needed to judge it.

    `answer_ids`: the sampled tokens, the one that ended the turn included. `reference`, `verifier`
    and `extra` come from the prompt's record. `finished`: the model ended its turn itself. `in_reasoning`:
    the prompt opened reasoning, as some templates do, so that the answer begins in it.
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
    def said(self) -> str:
        """The answer's text after its reasoning: what is compared with a reference."""
        return after_reasoning(self.answer_text, self.in_reasoning)


@dataclass(frozen=True)
class Score:
    """What a function said of a sample: a finite value, or else why there is none."""

    value: float | None
    error: str | None
    seconds: float

    @property
    def cause(self) -> str | None:
        """The beginning of the error, by which errors are counted."""
        return None if self.error is None else self.error.partition(":")[0]


def failed(error: str, seconds: float = 0.0) -> Score:
    """A score without a value; the error is cut to a length that can be logged."""
    return Score(None, error[:_ERROR_CHARACTERS], seconds)


def judged(value: object, seconds: float) -> Score:
    """The score of whatever a function returned: a finite number, or an error that says what it is.

    A number is what has `__float__`: Python's, NumPy's, and tensors of one element.
    """
    if not hasattr(type(value), "__float__"):
        return failed(f"not a number: returned {type(value).__name__}", seconds)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # say, of two elements
        return failed(f"not a number: returned {type(value).__name__} ({error})", seconds)
    if not math.isfinite(number):
        return failed(f"not finite: returned {number}", seconds)
    return Score(number, None, seconds)


_deadline = math.inf


def limit_call(seconds: float) -> None:
    """Set when the time of the call that begins now is over; a pool's worker does before each."""
    global _deadline
    _deadline = time.monotonic() + seconds


def time_left_s() -> float:
    """Return what is left of the running call's time; infinite outside a pool.

    A function that can stop by itself, with an answer, should do so by then: GRACE_S later it is killed.
    """
    return _deadline - time.monotonic()
