"""Extraction of a text's final answer, and comparison of two."""

from __future__ import annotations

import json
import re
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.rl.reward.final_answer import as_number, final_answer, same_answer

PAIRS = json.loads((Path(__file__).parent / "math_verify_pairs.json").read_text())["pairs"]
# (answer, reference): each pair is the same, or isn't.
SAME = [
    (r"\boxed{1{,}234}", "1234"), (r"\boxed{28\%}", "28%"), (r"\boxed{\frac12}", "1/2"),
    ("The answer is \\boxed{42}.\n\n#### Check\nIt holds.", "42"),
    ("<think>Maybe Answer: 41\n</think>\n42", "42"),
    (r"1\,234", "1234"), ("1 234", "1234"), ("1{,}234{,}567", "1234567"), ("1{,}234.5", "1,234.50"),
    (r"\frac 1 2", "0.5"), (r"\frac1{2}", "1/2"), (r"\frac{1}2", "1/2"), (r"-\frac{1}{2}", "-0.5"),
    (r"\frac{-1}{2}", "-1/2"), (r"3\frac{1}{2}", "3.5"), ("3 1/2", "7/2"), (r"-3\frac12", "-3.5"),
    ("½", "1/2"),
    ("3½", "3.5"), ("28 percent", "28%"), ("0.28", "28%"), ("28", r"28\%"), (r"\$5", "5"),
    ("$5", r"\$5.00"),
    (r"\$1{,}000", "1000"), (r"5\text{ cm}", "5"), (r"5 \mathrm{~cm}", "5 cm"),
    (r"5\ \text{cm}^2", "5 cm^2"),
    (r"5\text{ cm}^{2}", "5 cm²"), (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    ("10^{3}", "1000"),
    ("10^3", "1000"), (r"3 \times 10^{8}", "300000000"), (r"3\cdot10^{-2}", "0.03"),
    ("6.02e23", r"6.02 \times 10^{23}"), ("3×10⁸", "3e8"), (r"45^\circ", "45"), (r"45^{\circ}", "45°"),
    ("45 degrees", "45°"), (r"\{1,2,3\}", "{3, 2, 1}"), (r"\{1, 2\}", "1, 2"), ("(0,100)", "(0, 100)"),
    (r"[0,\infty)", r"[0, \infty)"), (r"\text{Yes}", "yes"), (r"\textbf{(C)}", "C"), ("(C)", r"\text{C}"),
    ("x=5", "5"), (r"x = \frac{1}{2}", "0.5"), ("3+4=7", "7"), ("42.", "42"), ("**42**", "42"),
    ("`42`", "42"),
    ("004", "4"), ("1e3", "1000"), (".5", "0.5"), ("2^{10}", "1024"),
    ("The final answer is $42$. I hope it is correct.", "42"), ("**Answer:** 42", "42"),
    ("**Answer**: 42", "42"),
    ("Answer: **42**", "42"), ('### Final Answer\n\n42', "42"), ('**Final Answer**\n\\boxed{42}', "42"),
    ('The answer is:\n\n\\[\n42\n\\]', "42"), ('The answer is\n$$\n42\n$$', "42"),
    ("So the answer is 42.", "42"),
    ("the correct answer is (B).", "B"), ("<answer>42</answer>", "42"),
    ('<think>x</think><answer>\n42\n</answer>', "42"),
    (r"<answer> The answer is \boxed{42} </answer>", "42"),
    ("#### 42 apples", "42"), ("#### $1,234", "1234"), ("#### -7", "−7"), (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{x=5}", "5"), (r"\boxed{5\text{ apples}}", "5"),
    (r"<|channel|>analysis<|message|>\boxed{41}<|end|><|start|>assistant<|channel|>final<|message|>42", "42"),
    ("guess 41</think>42", "42"), ("[THINK]41[/THINK]42", "42"), ("◁think▷41◁/think▷42", "42"),
    ("<seed:think>41</seed:think>42", "42"), ("<|START_THINKING|>41<|END_THINKING|>42", "42"),
    ("<thought>41</thought>42", "42"), ('<|channel>thought\n41<channel|>42', "42"),
    (r"\boxed{1},\boxed{2}", "1, 2"),
    ("5 dollars", "$5"), ("5 centimeters", "5 cm"), ("60 miles per hour", "60 mi/h"),
    ("approximately 5", "5"),
    ("≈5", "5"), ("= 5", "5"), (r"\boxed{\frac{1}{2}\text{ hour}}", "0.5"), ("1,000,000", "10^6"),
    ("Answer: 42, since 6*7=42", "42"), ("Answer: 42 (because 6*7)", "42"), (r"12\,000\,000", "12000000"),
    ("1~000", r"1\,000"), (r"\displaystyle\frac{3}{4}", ".75"), ("{42}", "42"), (r"\fbox{42}", "42"),
    (r"\boxed 42", "42"), (r"20^\circ\text{C}", "20 °C"), (r"\dfrac{2}{4}", "1/2"),
    ('The answer is $\\boxed{42}$.\n\n### Verification\n1 + 41', "42"),
    ('\\boxed{42}\n#### 2 methods agree\nindeed', "42"), ('\\boxed{42}\n\n#### 1. Check\nyes', "42"),
    ("\\boxed{42}\n\nI'm sure the answer is correct.", "42"), (r"\frac{1{,}000}{3}", "1000/3"),
    (r"\mathbf{7}", "7"),
    (r"7 \quad", "7"), ("10^{-3}", "0.001"), (r"\frac{1}{10^{3}}", "0.001"), (r"\$12.50", "12.5"),
    (r"12.50 \text{ dollars}", r"\$12.50"), (r"(1, \frac{1}{2})", "(1,0.5)"),
    (r"\boxed{\text{(A) } 5}", "(A) 5"),
]  # fmt: skip
DIFFERENT = [
    ("<think>First guess \\boxed{42}. No.</think>\nThe answer is 41", "42"),
    ("1,234", "1, 234"), ("1,234", "1.234"), ("12", "1 2"), ("5 million", "5"), ("5M", "5"), (r"\$5m", "5"),
    ("5 dozen", "5"), ("5 or 6", "5"), ("5 and 6", "5"), ("5-6", "5"), ("5!", "5"), ("5x", "5"),
    ("5i", "5"),
    (r"5\pi", "5"), ("5^2", "5"), ("5 squared", "5"), ("5^{2}", "52"), ("5_{2}", "52"), ("204_5", "204"),
    (r"\frac{1}{23}", r"\frac{12}{3}"), (r"\frac12 3", "1/23"), (r"1\frac{1}{2}", "11/2"),
    ("1 1/2", "11/2"),
    ("28", "0.28"), ("2.8%", "28"), ("5 km", "5 m"), ("5 m", "5 m^2"), ("$5", "£5"), ("x=5", "y=5"),
    ("x<5", "5"),
    (r"x \ge 5", "5"), (r"\pm 5", "5"), (">5", "5"), ("-5", "5"), ("(5)", "-5"), ("5 below zero", "5"),
    ("5 apples", "5 pears"), ("5 hundred", "5"), ("5th", "5"), ("0.333", "1/3"), ("0.3333333333", "1/3"),
    ("3.14", r"\pi"), ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("[0,1)", "[0,1]"), ("(1,000)", "(1,0)"),
    ("1,2", "2,1"), ("{1,2}", "{1,3}"), ("12:00", "12"), ("1:2", "1"), ("1/2", "2"), ("10^{3}", "103"),
    ("10^{-3}", "10^3"), ("2^{10}", "210"), ("1e3", "13"), (r"3\times 10^2", "3"),
    ("The answer is not 5", "5"),
    (r"<think>\boxed{42}", "42"), ("<think>42", "42"), (r"\boxed{42}<think>hm", "42"),
    (r"<|channel|>analysis<|message|>\boxed{42}", "42"),
    (r"<|channel|>analysis<|message|>\boxed{42}<|end|>", "42"),
    (r"\boxed{1}\boxed{2}", "2"), (r"\boxed{1} or \boxed{2}", "2"), (r"\boxed{}", "42"), ("", "42"),
    (r"1\,2", "12"),
    ("0,5", "5"), ("1,22", "122"), ("1 00", "100"), ("--5", "5"), ("+-5", "5"), ("5%", "5°"),
    (r"3\frac{3}{2}", "4.5"), ("7=11a+c", "11a+c"), ("1.5", "15"), ("1. 5", "1.5"), (r"1\!2", "1 2"),
    ("5 more", "5"),
    ("5 less", "5"), ("minus 5", "5"), ("5 times", "5"), ("a", "b"), ("5e", "5"), ("5 percentile", "5"),
    ("V", "v2"),
    ("1 {,} 2", "12"), (r"3 \sqrt{2}", "3"), ("5 mod 7", "5"), ("log 5", "5"), (r"\log 5", "5"),
    (r"\sqrt{5}", "5"),
    (r"5\%\%", "5"), (r"\frac{1}{0}", "0"), ("5/0", "0"), ("10^{9999}", "10^{9998}"), ("$**$", ""),
]  # fmt: skip


def scored(answer: str, reference: str) -> bool:
    return same_answer(final_answer(answer), final_answer(reference))


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


@pytest.mark.parametrize(("answer", "reference"), SAME)
def test_one_answer_in_two_writings(answer: str, reference: str) -> None:
    assert scored(answer, reference)
    assert same_answer(reference, final_answer(answer))


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_different_answers(answer: str, reference: str) -> None:
    assert not scored(answer, reference)
    assert not same_answer(reference, final_answer(answer))


@pytest.mark.parametrize("pair", PAIRS, ids=range(len(PAIRS)))
def test_scores_are_those_of_math_verify_or_differ_on_purpose(pair: dict[str, Any]) -> None:
    """Compare on math_verify's own examples; differences are explained in docs/alignment.md."""
    page = (Path(__file__).parents[3] / "docs" / "alignment.md").read_text()
    if "differs" in pair:
        assert not scored(pair["pred"], pair["gold"]), "it says 1, and Raymill doesn't"
        assert f"({pair['differs']})" in page
    else:
        assert scored(pair["pred"], pair["gold"]) == bool(pair["expected"])


def grouped(number: int, separator: str) -> str:
    return f"{number:,}".replace(",", separator)


INTEGER = st.integers(0, 10**9)


def writings(value: Fraction) -> list[str]:
    """The ways in which a value can be written, without units."""
    sign, size = "-" if value < 0 else "", abs(value)
    ways = [rf"\frac{{{size.numerator}}}{{{size.denominator}}}", rf"{size.numerator}/{size.denominator}",
            rf"\dfrac {{{size.numerator}}} {{{size.denominator}}}"]  # fmt: skip
    if size.numerator < 10 and size.denominator < 10:
        ways += [
            rf"\frac{size.numerator}{size.denominator}",
            rf"\tfrac{size.numerator}{{{size.denominator}}}",
        ]
    whole, rest = divmod(size.numerator, size.denominator)
    if rest and whole:
        ways += [
            rf"{whole}\frac{{{rest}}}{{{size.denominator}}}",
            f"{whole} {rest}/{size.denominator}",
        ]
    if size.denominator == 1:
        ways += [grouped(whole, mark) for mark in (",", "{,}", r"\,", " ", r",\!", r"\ ", "")]
        ways += [f"{whole}.0", f"{whole}.", f"00{whole}"]
    shifted = size * 1000
    if shifted.denominator == 1:
        ways += [f"{whole}.{int(shifted) % 1000:03d}", f"{whole:,}.{int(shifted) % 1000:03d}0"]
        ways += [
            rf"{shifted.numerator} \times 10^{{-3}}",
            rf"{shifted.numerator}\cdot10^{{-3}}",
            f"{shifted.numerator}e-3",
        ]
    return [sign + way for way in ways]


AROUND = [
    "{}", "${}$", r"\({}\)", r"\[{}\]", "**{}**", r"\left({}\right)", "{}.", " {}\n", r"\boxed{{{}}}",
    "So.\n#### {}", "The answer is ${}$.", "<think>#### 3</think>Answer: {}", r"\mathbf{{{}}}",
]  # fmt: skip


@st.composite
def written(draw: st.DrawFn, value: Fraction) -> str:
    """One of them as an answer."""
    text = draw(st.sampled_from(writings(value)))
    # "(1,000)" is a pair.
    ways = AROUND if "," not in text else [way for way in AROUND if "left(" not in way]
    return draw(st.sampled_from(ways)).format(text)


VALUES = st.one_of(
    INTEGER.map(Fraction), st.integers(-(10**7), 10**7).map(lambda n: Fraction(n, 1000)),
    st.fractions(-100, 100, max_denominator=30),
)  # fmt: skip


@given(st.data(), VALUES, VALUES)
def test_numbers_are_the_same_in_all_writings_and_never_another(
    data: st.DataObject, one: Fraction, other: Fraction
) -> None:
    texts = [data.draw(written(one)), data.draw(written(one)), data.draw(written(other))]
    assert scored(texts[0], texts[1]), texts
    assert scored(texts[0], texts[2]) == (one == other), texts


@given(st.data(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_neighbors_are_never_the_same(data: st.DataObject, number: int, digit: int) -> None:
    """Numbers of nearly the same characters: a digit more, a separator that isn't one, another sign."""
    one = data.draw(written(Fraction(number)))
    others = [
        Fraction(10 * number + 1),
        Fraction(number) + Fraction(1, 1000),
        Fraction(-number - 1),
        Fraction(number, 10) + 1000000,
    ]
    assert not scored(one, data.draw(written(data.draw(st.sampled_from(others)))))


WORDS = r"\frac \boxed{ \text{ Answer: <think> </think> #### cm"
PIECES = [*r"\{}^_$()[],.;:=+-/ 0123%#<>|∪x", "\n", *WORDS.split()]
LATEX = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


@given(LATEX, LATEX)
def test_broken_latex_raises_nothing(one: str, other: str) -> None:
    assert scored(one, one) or not final_answer(one).strip()
    assert same_answer(one, other) == same_answer(other, one)


def test_answers_are_judged_quickly_however_long_they_are() -> None:
    long = [
        r"\boxed{" * 5000, "Answer: " * 20_000, "{" * 100_000, "answer the " * 20_000, "(" * 4000, "1," * 1900,
        "<think>" * 20_000, "#### " * 20_000, "$" * 3999, "1 " * 2000, r"\text{" * 600 + "}" * 600, "=1" * 1900,
        "9" * 100_000, r"\frac{" * 600, "**a" * 1300, r"\boxed{x} " * 10_000,
    ]  # fmt: skip
    for text in long:
        began = time.process_time()
        scored(text, "42")
        assert time.process_time() - began < 1.0, text[:20]
    steps = "Since $x^2 = 4{,}096$, \\frac12 of it is 2,048. " * 100
    began = time.process_time()
    for number in range(50):
        assert scored(
            rf"<think>{steps}</think>{steps} \boxed{{{number:,}}}", f"{steps}\n#### {number}"
        )
    assert time.process_time() - began < 50 * 0.02


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), VALUES, VALUES)
def test_math_verify_says_the_same_of_generated_numbers(
    data: st.DataObject, one: Fraction, other: Fraction
) -> None:
    """Draw numbers in the notations that it reads: no spaces between thousands, no exponents of e."""
    from math_verify import parse, verify

    def drawn(value: Fraction) -> str:
        read = [
            way for way in writings(value) if not re.search(r"e-|\.$|[0-9](\\,| |\\ )[0-9]", way)
        ]
        return f"${data.draw(st.sampled_from(read))}$"

    texts = [drawn(one), drawn(one), drawn(other)]
    for answer, reference in ((texts[1], texts[0]), (texts[2], texts[0])):
        assert scored(answer, reference) == verify(
            parse(reference), parse(answer), float_rounding=15
        ), texts
