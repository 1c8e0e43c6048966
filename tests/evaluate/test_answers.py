"""Scores of answers, by hand."""

from __future__ import annotations

import pytest

from raymill.evaluate.answers import Answer, exact_match, refuses, score, token_f1

PHRASE = "I don't know of"


def test_exact_match_ignores_case_punctuation_articles_and_space() -> None:
    assert exact_match("The  `json.dumps`\nfunction.", "a jsondumps FUNCTION")
    assert not exact_match("json.dumps", "json.dump")
    assert exact_match("The.", "")  # nothing is left of either
    assert exact_match("theatre", "theatre") and not exact_match("theatre", "atre")


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        # Other numbers: huggingface/lighteval#1273 and UKGovernmentBEIS/inspect_ai#4620.
        ("-5", "5"), ("−5", "5"), ("It is -5.", "It is 5."), ("3.14", "314"), ("1/2", "12"),
        ("2-3", "23"), ("12:30", "1230"), ("1,5", "15"), (".5", "5"), ("-$5", "$5"), ("2*3", "23"),
        # Other names and signs: BunsenFeng/model_collaboration#127.
        ("C++", "C"), ("C#", "C"), ("x + 1", "x - 1"), ("+", "-"), ("", "?"), ("<", ">"),
        # The letter of a choice is no article.
        ("", "A"), ("The", "A"), ("an", "a"),
    ],
)  # fmt: skip
def test_what_says_something_is_compared(text: str, reference: str) -> None:
    for one, other in ((text, reference), (reference, text)):
        assert not exact_match(one, other)
        assert token_f1(one, other) < 1


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("(3.14)", "3.14"), ("It is 3.14.", "it is 3.14"), ("$3.14", "3.14"), ("−5", "-5"),
        ("3,000,000", "3000000"), ("`5`", "5"), ("**5**", "5"), ("10%", "10"), ("U.S.", "US"),
        ("GPT-4", "GPT4"), ("(A)", "a."), ("A cat - a dog!", "cat dog"), ("5.", "5"), ("x-1", "x-1"),
        ("Yes -- it is", "yes it is"), ("- 5", "5"),
    ],
)  # fmt: skip
def test_punctuation_alone_says_nothing(text: str, reference: str) -> None:
    assert exact_match(text, reference) and token_f1(text, reference) == 1.0


def test_token_f1_counts_tokens_as_often_as_they_stand() -> None:
    assert token_f1("red red blue", "red blue blue") == pytest.approx(2 / 3)
    assert token_f1("returns the sine of x", "returns sine") == pytest.approx(2 * 2 / (4 + 2))
    assert token_f1("x", "y") == 0.0
    assert token_f1("", "y") == token_f1("y", "the") == 0.0
    assert token_f1("", "an") == 1.0


def test_a_refusal_begins_with_the_phrase() -> None:
    assert refuses("  i DON'T know\nof `json.sqrt`.", PHRASE)
    assert not refuses("Well, I don't know of it.", PHRASE)
    assert not refuses("I don't", PHRASE)
    assert not refuses("", PHRASE)


def test_all_scores() -> None:
    answers = [
        Answer("a?", "`a` adds.", "`a` adds.", ended=True),
        Answer("b?", "`b` reads two bytes.", "`b` writes two bytes", ended=False),
        Answer("c?", "`c` sorts.", "I don't know of `c`.", ended=True),
        Answer("d?", "I don't know of `d`.", "I don't know of `d`.", ended=True),
        Answer("e?", "I don't know of `e`.", "`e` ends.", ended=True),
        Answer("f?", "I don't know of `f`.", " ", ended=True),
    ]
    scores = score(answers, PHRASE)
    assert scores.count == 6
    assert scores.exact == pytest.approx(2 / 6)
    # a: 1; b: 3 of 4 tokens; c: "c" of 5 and 2 tokens
    assert scores.f1 == pytest.approx((1 + 3 / 4 + 2 / 7) / 3)
    assert scores.ended == pytest.approx(4 / 5)
    assert scores.empty == pytest.approx(1 / 6)
    assert scores.refusal_precision == pytest.approx(1 / 2)
    assert scores.refusal_recall == pytest.approx(1 / 3)
    assert scores.refusal_f1 == pytest.approx(2 / 5)
    assert scores.metrics("sft")["sft/refusal_f1"] == scores.refusal_f1
    assert len(scores.metrics("sft")) == 8


def test_what_is_undefined_is_left_out() -> None:
    scores = score([Answer("a?", "yes", "", ended=True)], PHRASE)
    assert scores.ended is scores.refusal_precision is scores.refusal_recall is None
    assert scores.metrics("p") == {"p/count": 1, "p/exact": 0.0, "p/f1": 0.0, "p/empty": 1.0}
    assert score([], PHRASE).metrics("p") == {"p/count": 0}
    refused = score([Answer("a?", PHRASE, "yes", ended=True)], PHRASE)
    assert (refused.f1, refused.refusal_recall, refused.refusal_f1) == (None, 0.0, 0.0)
    needless = score([Answer("a?", "yes", PHRASE, ended=True)], PHRASE)
    assert (needless.refusal_precision, needless.refusal_recall) == (0.0, None)
