"""Memory of a served model, from which follows how many answers can be drawn at the same time.

A served model holds its weights, the keys and values of every answer at all of its positions, and what a pass
computes in between: a block's activations and the widths that it attends to, and for every row that draws a
token the logits and what the draw makes of them. A pass of prompts may have to return the logits of all of
its tokens, for their log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Answers at the same time, whatever the memory: a step's overhead for each is no longer small then.
MOST_SLOTS = 256
# Share of the free memory that is planned; the rest is for whatever else the device has to do, and for copies
# while the cache of a layer grows.
PLANNED_SHARE = 0.8
# Bytes per token of the vocabulary of a row that is drawn by top_p: logits, probabilities in fp32 and float64,
# their order and their sums.
DRAW_BYTES = 64
# The same of a prompt's token: fp32 logits and log-probabilities of those in the model's type.
SCORE_BYTES = 8


@dataclass(frozen=True)
class ServedNumbers:
    """Numbers of a model.

    `weights`: bytes; `element`: bytes of a number of its activations and its cache; `cache`: numbers of a
    token's keys and values in all layers; `block`: numbers of a token's activations within one block;
    `positions`: of prompt and answer.
    """

    weights: int
    element: int
    cache: int
    block: int
    vocabulary: int
    positions: int


@dataclass(frozen=True)
class ServingMemory:
    """Bytes of a served model: its weights, a pass over prompts, and each answer; and what is free for it.

    `slot`: cache of an answer at all of its positions; `row`: its part of a pass that draws tokens.
    """

    weights: int
    prompts: int
    slot: int
    row: int
    free: int

    @property
    def fitting(self) -> int:
        """Answers that fit, at most `MOST_SLOTS`."""
        left = int(self.free * PLANNED_SHARE) - self.weights - self.prompts
        return max(0, min(MOST_SLOTS, left // (self.slot + self.row)))

    @property
    def problem(self) -> str | None:
        """Say in numbers that not even one answer fits; None if one does."""
        if self.fitting:
            return None
        return (
            f"not even one answer fits into memory: weights {size(self.weights)}, a pass over prompts "
            f"{size(self.prompts)}, an answer's cache {size(self.slot)} and its draw {size(self.row)}, of "
            f"{size(int(self.free * PLANNED_SHARE))} ({PLANNED_SHARE:.0%} of {size(self.free)} that are free)"
        )


def serving_memory(numbers: ServedNumbers, free: int, prompt_tokens: int) -> ServingMemory:
    """Plan a model on a device with `free` bytes; `prompt_tokens`: those of a pass."""
    token = numbers.block * numbers.element
    # A mask in the model's type, and another while it is made.
    attended = numbers.positions * (numbers.element + 2)
    return ServingMemory(
        numbers.weights,
        prompt_tokens * (token + attended + numbers.vocabulary * (numbers.element + SCORE_BYTES)),
        numbers.positions * numbers.cache * numbers.element,
        token + attended + numbers.vocabulary * (numbers.element + DRAW_BYTES),
        free,
    )


def serving_table(models: Sequence[tuple[str, ServingMemory, int | None]]) -> list[str]:
    """Return the lines of a table of models: (name, memory, slots that were asked for)."""
    rows = [
        ("model", "weights", "prompts", "per answer", "free", "answers at once", "in all"),
        *(_row(name, memory, asked) for name, memory, asked in models),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _row(name: str, memory: ServingMemory, asked: int | None) -> tuple[str, ...]:
    fitting = memory.fitting
    slots = fitting if asked is None else asked
    total = memory.weights + memory.prompts + slots * (memory.slot + memory.row)
    told = f"{slots}"
    if asked is not None and asked > fitting:
        told += f" (only {fitting} fit)"
    return (
        name, size(memory.weights), size(memory.prompts), size(memory.slot + memory.row),
        size(memory.free), told, size(total),
    )  # fmt: skip


def size(count: int) -> str:
    """Return bytes as text, in MiB below a GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
