"""The unit of work: a fixed batch of answers, whoever samples it.

What a model computes for a row depends, in the last bits, on the rows beside it. So what shares a batch is
planned from a step's prompts alone, and results are the same with any number of actors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """Answers that are sampled together: which, after what, and with which seeds."""

    answers: tuple[tuple[int, int], ...]  # (sample id, number of the answer in its group)
    prompts: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        first, last = ("/".join(map(str, self.answers[place])) for place in (0, -1))
        return f"unit of {len(self.answers)} answers (sample/number {first} to {last})"


def plan_units(
    prompts: Mapping[int, Sequence[int]], *, group: int, batch: int, seed: int, step: int
) -> list[Unit]:
    """`group` answers to each of `prompts` (sample id → tokens), `batch` of them a unit.

    Long prompts come first: neighbours in length waste little padding, and the longest work doesn't
    begin last.

    Raises:
        ValueError: `group` or `batch` is below 1, or a prompt is empty.
    """
    if min(group, batch) < 1:
        raise ValueError(f"group={group} and batch={batch} must be at least 1")
    empty = [sample for sample, prompt in prompts.items() if not prompt]
    if empty:
        raise ValueError(f"the prompts of samples {empty[:8]} are empty")
    ordered = sorted(prompts, key=lambda sample: (-len(prompts[sample]), sample))
    answers = [(sample, number) for sample in ordered for number in range(group)]
    return [
        Unit(
            answers=tuple(some),
            prompts=tuple(tuple(prompts[sample]) for sample, _ in some),
            seeds=tuple(answer_seed(seed, step, *answer) for answer in some),
        )
        for some in (answers[start : start + batch] for start in range(0, len(answers), batch))
    ]


def answer_seed(seed: int, step: int, sample_id: int, number: int) -> int:
    """63 bits of the answer's own, so that neither order nor neighbours decide what is drawn."""
    digest = hashlib.sha256(f"answer {seed} {step} {sample_id} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
