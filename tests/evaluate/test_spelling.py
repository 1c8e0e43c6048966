"""Spelling baseline: finds signal where spelling carries it, and none elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from raymill.evaluate.spelling import best_threshold, f1, rarest_words, spelling_refusal_f1

NAMES = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrt"]


def test_f1_by_hand() -> None:
    given = np.array([True, True, False, False])
    expected = np.array([True, False, True, False])
    assert f1(given, expected) == 0.5
    assert f1(np.zeros(4, bool), expected) == 0.0


def test_the_threshold_with_the_best_f1() -> None:
    probability = np.array([0.9, 0.8, 0.4, 0.3, 0.1])
    # from 0.9 on: 2·1/(1+2); from 0.4 on: 2·2/(3+2), the best; from 0.1 on: 2·2/(5+2)
    refused = np.array([True, False, True, False, False])
    assert best_threshold(probability, refused) == 0.4
    # Equal probabilities fall on one side: refusing one of the two isn't possible.
    assert best_threshold(np.array([0.5, 0.5]), np.array([True, False])) == 0.5


def test_the_rarest_word_is_the_name_asked_about() -> None:
    questions = [
        "What is `json.sqrt`?",
        "Explain json.sqrt().",
        "What is `a.b`?",
        "Explain this.",
        "",
    ]
    assert rarest_words(questions) == ["json.sqrt", "json.sqrt", "a.b", "this", ""]


def test_spelling_that_shows_is_found() -> None:
    train = [(f"What is {n}{'zz' if k % 3 == 0 else ''}?", k % 3 == 0) for k, n in enumerate(NAMES)]
    held_out = [("What is pulzz?", True), ("What is pul?", False), ("What is sozz?", True)]
    assert spelling_refusal_f1(train, held_out) == 1.0
    assert spelling_refusal_f1(train, held_out) == spelling_refusal_f1(train, held_out)


def test_spelling_that_shows_nothing_is_refused_throughout() -> None:
    """Refusing everything has the best F1, 2·p/(1 + p), where spelling carries no signal."""
    rng = np.random.default_rng(0)
    labels = rng.random(len(NAMES)) < 0.3
    train = [(f"What is {n}?", bool(label)) for n, label in zip(NAMES, labels, strict=True)]
    held_out = [(f"What is {n[::-1]}?", k % 4 == 0) for k, n in enumerate(NAMES)]
    measured = spelling_refusal_f1(train, held_out)
    assert measured is not None and measured < 0.5


@pytest.mark.parametrize("missing", [True, False])
def test_a_missing_class_has_no_score(missing: bool) -> None:
    both = [(f"What is {n}?", k % 2 == 0) for k, n in enumerate(NAMES)]
    one = [(question, not missing) for question, _ in both]
    assert spelling_refusal_f1(both, one) is None
    assert spelling_refusal_f1(one, both) is None
    assert spelling_refusal_f1(both[:4], both) is None
