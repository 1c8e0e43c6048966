"""The memory of a served model, computed by hand, and measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raymill.plan.serving import MOST_SLOTS, ServedNumbers, serving_memory, serving_table

MIB = 2**20
# 100 MiB of weights, and an answer of 1,024 positions with 1,024 numbers each in two bytes.
NUMBERS = ServedNumbers(
    weights=100 * MIB, element=2, cache=1024, block=0, vocabulary=0, positions=1024
)


def test_slots_are_what_the_planned_share_leaves() -> None:
    memory = serving_memory(NUMBERS, 200 * MIB, prompt_tokens=512)
    assert (memory.slot, memory.row, memory.prompts) == (2 * MIB, 4096, 2 * MIB)
    # 160 MiB planned, less the weights and a pass of prompts.
    assert memory.fitting == (58 * MIB) // (2 * MIB + 4096) == 28
    assert memory.problem is None
    assert serving_memory(NUMBERS, 2**50, 512).fitting == MOST_SLOTS


def test_a_model_for_which_not_one_answer_fits_is_told_in_numbers() -> None:
    memory = serving_memory(NUMBERS, 129 * MIB, 512)
    assert memory.fitting == 0
    assert memory.problem is not None
    for number in ("weights 100.0 MiB", "cache 2.0 MiB", "of 103.2 MiB (80% of 129.0 MiB"):
        assert number in memory.problem


@pytest.mark.parametrize(
    "field", ["weights", "element", "cache", "block", "vocabulary", "positions"]
)
def test_whatever_a_model_has_more_of_leaves_fewer_answers(field: str) -> None:
    numbers = replace(NUMBERS, block=4096, vocabulary=50_000)
    fewer = replace(numbers, **{field: 2 * getattr(numbers, field)})
    free = 600 * MIB
    assert serving_memory(fewer, free, 512).fitting < serving_memory(numbers, free, 512).fitting


def test_the_table_says_what_fits_of_what_was_asked_for() -> None:
    memory = serving_memory(NUMBERS, 200 * MIB, 512)
    head, planned, asked = serving_table([("one", memory, None), ("two", memory, 64)])
    assert head.split("  ")[0] == "model"
    assert planned.split()[-3:] == ["28", "158.1", "MiB"]
    assert "64 (only 28 fit)" in asked
