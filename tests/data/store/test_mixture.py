"""Shares are exact at every sample, invertible, and change where the configuration says."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.data.store.mixture import LARGEST_SUM, Change, Mixture, whole_weights
from raymill.errors import DataError

# Of very different sizes: a source may have a billionth of another's weight.
weights_strategy = st.lists(
    st.one_of(
        st.floats(1e-6, 1e6), st.integers(1, 10**9).map(float), st.sampled_from([1e-9, 1.0, 1e9])
    ),
    min_size=1,
    max_size=200,
)


def counts(mixture: Mixture, sample: int) -> list[int]:
    found: list[int] = mixture.counts(np.array([sample]))[0].tolist()
    return found


@given(weights_strategy, st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_every_source_is_within_two_samples_of_its_share_anywhere(
    weights: list[float], samples: list[int]
) -> None:
    mixture = Mixture([Change(0, tuple(weights))], [None] * len(weights))
    whole = mixture.phases[0].weights
    found = mixture.counts(np.array(samples))
    assert np.array_equal(found.sum(axis=1), samples)
    for sample, row in zip(samples, found.tolist(), strict=True):
        for weight, count in zip(whole, row, strict=True):
            assert abs(count - Fraction(weight * sample, sum(whole))) < 2


@given(weights_strategy, st.integers(0, 2**40), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_the_assignment_counts_up_and_inverts(
    weights: list[float], first: int, number: int
) -> None:
    mixture = Mixture([Change(0, tuple(weights))], [None] * len(weights))
    samples = np.arange(first, first + number)
    source, position = mixture.assign(samples)
    given_before = counts(mixture, first)
    for one, at in zip(source.tolist(), position.tolist(), strict=True):
        assert at == given_before[one], "a source gives its samples one after the other"
        given_before[one] += 1
    assert given_before == counts(mixture, first + number)
    assert np.array_equal(mixture.samples(source, position), samples)


class BruteForce:
    """The same tree in rational arithmetic, walked from the root for one sample at a time."""

    def __init__(self, weights: list[int]) -> None:
        # Nodes are (weight, number, children); the lightest two are merged.
        nodes = [(Fraction(w), i, ()) for i, w in enumerate(weights) if w]
        number = len(weights)
        while len(nodes) > 1:
            nodes.sort(key=lambda node: node[:2])
            light, heavy, *nodes = nodes
            nodes.append((light[0] + heavy[0], number, (light, heavy)))
            number += 1
        (self.root,) = nodes

    def source(self, sample: int) -> int:
        node, index = self.root, sample
        while node[2]:
            share = node[2][0][0] / node[0]
            before, after = (int(n * share + Fraction(1, 2)) for n in (index, index + 1))
            node, index = (node[2][0], before) if after > before else (node[2][1], index - before)
        return int(node[1])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any), st.integers(0, 10**12))
@settings(max_examples=60, deadline=None)
def test_it_agrees_with_rational_arithmetic(weights: list[int], first: int) -> None:
    mixture = Mixture([Change(0, tuple(map(float, weights)))], [None] * len(weights))
    reference = BruteForce(whole_weights(weights))
    source, _ = mixture.assign(np.arange(first, first + 40))
    assert source.tolist() == [reference.source(first + i) for i in range(40)]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_changes_and_limits_divide_the_samples_as_counting_one_by_one_does(
    data: st.DataObject,
) -> None:
    sources = data.draw(st.integers(1, 5))
    one = st.tuples(*[st.integers(0, 9)] * sources).filter(any)
    firsts = [0, *sorted(data.draw(st.sets(st.integers(1, 120), max_size=3)))]
    changes = [Change(first, tuple(map(float, data.draw(one)))) for first in firsts]
    limits = [data.draw(st.none() | st.integers(0, 60)) for _ in range(sources)]
    reference, available = one_by_one(changes, limits, 200)
    mixture = Mixture(changes, limits)
    assert (
        mixture.available == available
        if available is not None
        else (mixture.available is None or mixture.available >= 200)
    )
    if not reference:
        return
    samples = np.arange(len(reference))
    source, position = mixture.assign(samples)
    assert source.tolist() == reference
    assert np.array_equal(mixture.samples(source, position), samples)
    expected = np.cumsum(np.eye(sources, dtype=int)[reference], axis=0)
    assert np.array_equal(mixture.counts(samples + 1), expected)


def one_by_one(
    changes: list[Change], limits: list[int | None], number: int
) -> tuple[list[int], int | None]:
    """The sources of `number` samples; and how many there are, if fewer."""
    given_before, drawn, state = [0] * len(limits), [], None
    for sample in range(number):
        weights = [change.weights for change in changes if change.first <= sample][-1]
        live = [
            0 if limit is not None and count >= limit else int(weight)
            for weight, limit, count in zip(weights, limits, given_before, strict=True)
        ]
        if not any(live):
            return drawn, sample
        starts = any(change.first == sample for change in changes)
        # A phase begins where weights change, and where a source has reached its limit.
        if state is None or starts or state[1] != live:
            state = (sample, live, BruteForce(live))
        drawn.append(state[2].source(sample - state[0]))
        given_before[drawn[-1]] += 1
    return drawn, None


def test_a_source_stops_at_its_limit_and_the_others_share() -> None:
    mixture = Mixture([Change(0, (0.5, 0.3, 0.2))], [100, None, None])
    assert counts(mixture, 200)[0] == 100
    assert counts(mixture, 10_200) == [100, *np.add(counts(mixture, 200)[1:], [6000, 4000])]


def test_running_out_is_refused_with_the_number_there_is() -> None:
    mixture = Mixture([Change(0, (1.0, 2.0))], [10, 30])
    assert mixture.available == 40
    mixture.assign(np.arange(40))
    with pytest.raises(DataError, match=r"the data has 40 samples .* and 41 are needed"):
        mixture.assign(np.arange(41))


def test_weights_become_whole_numbers_without_loss() -> None:
    assert whole_weights([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert whole_weights([1e-9, 1.0]) == [1, 10**9]
    assert whole_weights([0.0, 0.25, 0.5]) == [0, 1, 2]
    rounded = whole_weights([1e-12, 1.0, 3.0])
    assert rounded[0] == 1 and sum(rounded) <= LARGEST_SUM
    assert rounded[2] / rounded[1] == pytest.approx(3, rel=1e-8)


def test_huge_positions_do_not_overflow() -> None:
    weights = (float(2**30 - 1), 1.0, float(2**30))
    mixture = Mixture([Change(0, weights)], [None] * 3)
    sample = 2**50 + 12345
    row = counts(mixture, sample)
    for weight, count in zip(mixture.phases[0].weights, row, strict=True):
        assert abs(count - Fraction(weight * sample, 2**31)) < 2
    source, position = mixture.assign(np.arange(sample, sample + 64))
    assert np.array_equal(mixture.samples(source, position), np.arange(sample, sample + 64))
