"""Normalization: hand-made cases, and what it must leave alone."""

from __future__ import annotations

import pytest

from raymill.data.corpus.cleaning.normalize import Normalize
from raymill.data.corpus.draft import Draft

EVERYTHING = Normalize("NFC", True, True, True, True, 1)
NOTHING = Normalize("none", False, False, False, False, 100)


def normalized(text: str, step: Normalize = EVERYTHING) -> str:
    draft = Draft(text, "web")
    step.apply(draft)
    return draft.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cafe\u0301", "café"),
        ("\u1112\u1161\u11ab", "한"),
        ("a\r\nb\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("a\x00b\x1bc\x7fd\x9be", "abcde"),
        ("a\tb", "a\tb"),
        ("soft\xadhyphen zero\u200bwidth\u2060 \ufeffmark", "softhyphen zerowidth mark"),
        ("no\xa0break\u3000wide\x0cfeed", "no break wide feed"),
        ("a  \t b", "a b"),
        ("a \t\nb\u3000", "a\nb"),
        ("a\n\n\n\nb\n", "a\n\nb"),
        # Persian's and Devanagari's joiners, emoji and marks of direction mean something.
        ("می\u200cخواهم क\u200dष 👩\u200d💻 \u200fא", "می\u200cخواهم क\u200dष 👩\u200d💻 \u200fא"),
    ],
)
def test_cases(text: str, expected: str) -> None:
    assert normalized(text) == expected
    assert normalized(expected) == expected


def test_everything_can_be_left_alone_but_ends_of_lines() -> None:
    text = "cafe\u0301 \x07 \u200b \xa0 a  b\n\n\n\n  c"
    assert normalized(text, NOTHING) == text
    assert normalized("a \r\nb", NOTHING) == "a\nb"


def test_indentation_stays_unless_spaces_collapse() -> None:
    code = "def f():\n    return 1"
    assert normalized(code, Normalize("NFC", True, True, True, False, 2)) == code


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\ufeff", "\x00\x00"])
def test_documents_without_text_are_dropped(text: str) -> None:
    assert EVERYTHING.apply(Draft(text, "web")) == "empty"
