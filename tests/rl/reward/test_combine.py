"""Weighted sums of scores, by hand; what has no value has no reward."""

from __future__ import annotations

import math

import pytest

from raymill.rl.reward.combine import Combination, metric_name
from raymill.rl.reward.task import Score, failed, judged


def scores(*values: float | str) -> list[Score]:
    return [failed(v) if isinstance(v, str) else Score(v, None, 0.0) for v in values]


def test_a_weighted_sum_less_the_length() -> None:
    combination = Combination({"exact": 1.0, "length": -0.5}, max_tokens=10, length_penalty=0.2)
    combined = combination.combine({"exact": scores(1, 0), "length": scores(4, 2)}, [5, 10])
    assert combined.rewards == pytest.approx((1 - 2 - 0.1, -1 - 0.2))
    assert combined.components == {"exact": (1, 0), "length": (4, 2)}
    assert combined.causes == {}


def test_an_error_costs_its_sample_and_is_counted_by_cause() -> None:
    combination = Combination({"a": 1.0, "b": 1.0}, max_tokens=1)
    combined = combination.combine(
        {
            "a": scores(1, "timeout: a took 3 s", "timeout: a took 4 s", 1, math.nan),
            "b": scores(1, "died: signal 9", 1, math.inf, 1),
        },
        [1, 1, 1, 1, 1],
    )
    assert combined.rewards == (2, None, None, None, None)
    assert combined.components["a"] == (1, None, None, 1, None)
    assert combined.causes == {
        "a: timeout": 2, "b: died": 1, "b: not finite": 1, "a: not finite": 1,
    }  # fmt: skip


def test_what_has_no_weight_may_be_missing() -> None:
    given = {"a": scores(1.0, 2.0), "b": scores("timeout: 10 s", 3.0)}
    combined = Combination({"a": 1.0, "b": 0.0}, max_tokens=1).combine(given, [0, 0])
    assert combined.rewards == (1.0, 2.0)
    assert combined.components["b"] == (None, 3.0)
    assert combined.causes == {"b: timeout": 1}


def test_a_sum_that_overflows_is_no_reward() -> None:
    combined = Combination({"a": 1e200}, max_tokens=1).combine({"a": scores(1e200, 1)}, [0, 0])
    assert combined.rewards == (None, 1e200)
    assert combined.causes == {"sum: not finite": 1}


def test_all_may_fail() -> None:
    combined = Combination({"a": 1.0}, max_tokens=1).combine({"a": scores("x: y")}, [1])
    assert combined.rewards == (None,)
    assert Combination({"a": 1.0}, max_tokens=1).combine({"a": []}, []).rewards == ()


def test_metrics_have_names_that_trackers_take() -> None:
    assert metric_name("http://host:80/a?b=c") == "http_host_80_a_b_c"
    assert metric_name("my.module:f") == "my.module_f"


def test_scores_must_fit() -> None:
    combination = Combination({"a": 1.0, "b": 1.0}, max_tokens=1)
    with pytest.raises(ValueError, match="expected scores of"):
        combination.combine({"a": scores(1)}, [1])
    with pytest.raises(ValueError, match="expected 1 scores each"):
        combination.combine({"a": scores(1), "b": scores(1, 2)}, [1])


def test_judged_takes_numbers_only() -> None:
    import numpy as np

    assert judged(np.float32(0.5), 0.1) == Score(0.5, None, 0.1)
    assert judged(True, 0).value == 1.0
    assert judged(np.array([1.0, 2.0]), 0).cause == "not a number"
    for value in (None, "1", b"1", 1j, [1.0], 10**400):
        assert judged(value, 0).cause == "not a number", value
    for number in (math.nan, math.inf, -math.inf, np.float64("nan")):
        assert judged(number, 0).cause == "not finite"
    assert len(failed("x" * 10_000).error or "") == 500
