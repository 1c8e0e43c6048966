"""Batches depend on a step's prompts alone."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymill.rl.rollout.engine import answer_seed, plan_batches
from rl.rollout.tiny import prompts

SOME_PROMPTS = st.dictionaries(
    st.integers(0, 10**12), st.lists(st.integers(0, 99), min_size=1, max_size=9), max_size=12
)


@given(SOME_PROMPTS, st.integers(1, 5), st.integers(1, 7), st.randoms())
def test_every_answer_is_planned_once_whatever_the_order(prompts, group, batch, random) -> None:  # type: ignore[no-untyped-def]
    batches = plan_batches(prompts, group_size=group, batch=batch, seed=1, step=2)
    answers = [answer for planned in batches for answer in planned.answers]
    assert sorted(answers) == sorted((s, n) for s in prompts for n in range(group))
    assert [len(planned.answers) for planned in batches[:-1]] == [batch] * (len(batches) - 1)
    lengths = [len(prompt) for planned in batches for prompt in planned.prompts]
    assert lengths == sorted(lengths, reverse=True)
    for planned in batches:
        for (sample, number), prompt, seed in zip(
            planned.answers, planned.prompts, planned.seeds, strict=True
        ):
            assert prompt == tuple(prompts[sample])
            assert seed == answer_seed(1, 2, sample, number)
    shuffled = list(prompts.items())
    random.shuffle(shuffled)
    assert plan_batches(dict(shuffled), group_size=group, batch=batch, seed=1, step=2) == batches


def test_seeds_are_the_answers_own() -> None:
    seeds = {
        answer_seed(seed, step, sample, number)
        for seed in range(3)
        for step in range(10)
        for sample in range(20)
        for number in range(8)
    }
    assert len(seeds) == 3 * 10 * 20 * 8
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**63, "Parquet and torch hold them as they are"
    by_hand = hashlib.sha256(b"answer 7 3 19 2").hexdigest()
    assert answer_seed(7, 3, 19, 2) == int(by_hand[:16], 16) // 2


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size=0"):
        plan_batches(prompts(), group_size=0, batch=4, seed=0, step=0)
    with pytest.raises(ValueError, match=r"samples \[5\] are empty"):
        plan_batches({4: [1], 5: []}, group_size=1, batch=4, seed=0, step=0)
    assert plan_batches({}, group_size=1, batch=4, seed=0, step=0) == []
