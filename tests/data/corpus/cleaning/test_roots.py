"""ROOTS' rules: thresholds by language, and repeated characters against a count by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.corpus.cleaning.presets import alone, preset, reason, step_of
from raymill.data.corpus.cleaning.roots import repeated_characters

ROOTS = step_of("roots", "roots")
DISTINCT = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(400)]


@pytest.mark.parametrize(
    ("rule", "within", "beyond", "expected"),
    [
        ("min_words", "ab " * 10, "ab " * 9 + "12 ;;", "too_few_words"),
        ("max_words", "ab " * 100_000, "ab " * 100_001, "too_many_words"),
        # Twice the same 5 words, and so one 5-gram of 10 twice: 2 of 10 windows; 4 of 10.
        ("max_repeated_words", " ".join([*DISTINCT[:5], "x", "y", "z", "w", *DISTINCT[:5]]),
         " ".join([*DISTINCT[:6], "x", "y", *DISTINCT[:6]]), "repeated_words"),
        ("max_special_characters", "abcdef 123", "abcde 1234", "special_characters"),
        ("min_stop_words", "the " + "fish " * 9, "the " + "fish " * 10, "too_few_stop_words"),
    ],
)  # fmt: skip
def test_thresholds(rule: str, within: str, beyond: str, expected: str) -> None:
    step = alone(ROOTS, rule)
    assert reason(step, within) is None
    assert reason(step, beyond) == expected


@settings(deadline=None)
@given(st.text("ab ", max_size=80), st.integers(1, 4))
def test_repeated_characters_are_those_counted_one_by_one(text: str, n: int) -> None:
    counts = Counter(text[i : i + n] for i in range(len(text) - n + 1))
    most = min(int(math.sqrt(len(counts))), sum(count > 1 for count in counts.values()))
    expected = sum(count for _, count in counts.most_common(most)) / max(sum(counts.values()), 1)
    points = np.array([ord(character) for character in text], np.uint32)
    assert repeated_characters(points, n) == pytest.approx(expected)


def test_each_language_has_its_thresholds_and_stop_words() -> None:
    languages = preset("roots")["roots"].languages
    english, german = languages["en"], alone(ROOTS, "min_stop_words")
    assert reason(alone(english, "min_words"), "ab " * 19) == "too_few_words"
    assert reason(german, "der die das " + "Fisch " * 3, "de") is None
    assert reason(german, "the and of " + "Fisch " * 97, "de") == "too_few_stop_words"
    assert reason(german, "Fisch " * 9, "xx") is None
