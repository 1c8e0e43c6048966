"""Which part of a text is its final answer, and when two are the same."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymill.reward.final_answer import as_number, final_answer, same_answer


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("42", "42"),
        ("3 + 4 = 7\n#### 7", " 7"),
        ("#### 1\nno, wait\n#### 2\nbye", " 2"),
        ("The Answer: 5 apples\nThank you.", " 5 apples"),
        ("**Final answer:**\n\n17", "17"),
        ("Answer :", ""),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed {a}, then \boxed{b{c}d} e", "b{c}d"),
        (r"\boxed{cut off", "cut off"),
        (r"Answer: \boxed{3}", "3"),  # the innermost is the last
        (r"\boxed{3} Answer: 4", " 4"),
        ("", ""),
    ],
)
def test_the_last_marker_counts(text: str, found: str) -> None:
    assert final_answer(text) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", Fraction(2469, 2)), ("-3e2", Fraction(-300)), ("$5", Fraction(5)),
        ("−7", Fraction(-7)), ("-$2.5", Fraction(-5, 2)), ("3/4", Fraction(3, 4)), (".5", Fraction(1, 2)),
        (r"-\frac{3}{4}", Fraction(-3, 4)), (r"\dfrac{6}{8}", Fraction(3, 4)), ("5.", Fraction(5)),
        ("12,34", None), ("1,2", None), ("1/0", None), ("", None), (".", None), ("-", None), ("e5", None),
        ("nan", None), ("inf", None), ("1e9999999", None), ("9" * 200, None), ("٣", None),
        ("0x10", None), ("1_000", None), ("two", None), ("1 2", None),
    ],
)  # fmt: skip
def test_numbers(text: str, value: Fraction | None) -> None:
    assert as_number(text) == value


@given(st.integers(-(10**20), 10**20))
def test_integers_are_the_same_however_they_are_written(number: int) -> None:
    for written in (f"{number}", f"{number:,}", f"{number}.0", f" **{number}** ", f"{number}/1"):
        assert same_answer(written, str(number)), written
        assert not same_answer(written, str(number + 1)), written


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_can_be_compared(one: str, other: str) -> None:
    assert same_answer(one, one)
    assert same_answer(one, other) == same_answer(other, one)
    final_answer(one)


def test_text_is_the_same_but_for_case_and_space() -> None:
    assert same_answer(" New\n  York. ", "new york")
    assert same_answer("`os.path`", "os.path")
    assert not same_answer("new york", "newyork")
    assert not same_answer("0.333", "1/3")
