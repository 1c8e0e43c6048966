"""Rules about lines: FineWeb's, C4's, mC4's and RefinedWeb's, just within their thresholds and just beyond."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.corpus.cleaning.presets import alone, reason, step_of
from raymill.data.corpus.cleaning.c4 import C4
from raymill.data.corpus.cleaning.refinedweb import RefinedWebLines
from raymill.data.corpus.draft import Draft

FINEWEB = step_of("fineweb", "fineweb")
STRICT_C4: C4 = step_of("c4", "c4")
LENIENT_C4: C4 = step_of("fineweb", "c4")
LINES: RefinedWebLines = step_of("refinedweb", "refinedweb_lines")
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["A line of text.", "READ", "3 likes", "items in cart", "Read more...", "lorem ipsum dolor sit",
             "x {", "uses cookies on it.", "a [1] b. c d", "", "  ", "12", "javascript is off."]
        ),
        st.text(max_size=20),
    ),
    max_size=12,
).map("\n".join)  # fmt: skip


def of_lines(marked: int, marked_line: str, other: int, other_line: str) -> str:
    return "\n".join([marked_line] * marked + [other_line] * other)


@pytest.mark.parametrize(
    ("rule", "within", "beyond", "expected"),
    [
        ("min_punctuated_lines", of_lines(3, "A.", 22, "B"), of_lines(2, "A.", 23, "B"),
         "unpunctuated_lines"),
        ("min_punctuated_lines", of_lines(3, "句。", 22, "B"), of_lines(2, "句。", 23, "B"),
         "unpunctuated_lines"),
        ("max_short_lines", of_lines(67, "x" * 30, 33, "y" * 31), of_lines(68, "x" * 30, 32, "y" * 31),
         "short_lines"),
        # A second line of 9 characters in 900; in 899.
        ("max_duplicate_characters", "x" * 882 + "\nline 0000" * 2, "x" * 881 + "\nline 0000" * 2,
         "duplicate_characters"),
        ("max_newlines_per_word", "a b c d\ne f g\nh i\nj", "a b c d\ne f g\nh i\nj\n", "list"),
    ],
)  # fmt: skip
def test_fineweb(rule: str, within: str, beyond: str, expected: str) -> None:
    step = alone(FINEWEB, rule)
    assert reason(step, within) is None
    assert reason(step, beyond) == expected


def test_fineweb_drops_white_space() -> None:
    assert reason(FINEWEB, "\n \n") == "empty"


def left(step: C4 | RefinedWebLines, text: str) -> str | None:
    draft = Draft(text, "web")
    return None if step.apply(draft) else draft.text


FIVE = "One two three. " * 5


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("Only two.", False), ("Now there are three.", True), ("No mark at the end", False),
        ("It trails off...", False), ("Turn on JavaScript please.", False),
        ("We value the Privacy Policy.", False),
        (f"A {'x' * 1000} word.", True), (f"A {'x' * 1001} word.", False), ('He said "so it is"', True),
    ],
)  # fmt: skip
def test_c4_keeps_lines(line: str, kept: bool) -> None:
    assert left(STRICT_C4, f"{FIVE}\n  {line}\n") == (
        f"{FIVE}\n{line}" if kept else FIVE.strip()
    ).replace(FIVE, FIVE.strip())


def test_c4_without_terminal_punctuation() -> None:
    assert (
        left(LENIENT_C4, f"{FIVE}\nNo mark here either") == f"{FIVE.strip()}\nNo mark here either"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FIVE, None), ("One two three. " * 4, "too_few_sentences"),
        (FIVE + "\nA Lorem Ipsum text.", "lorem_ipsum"),
        (FIVE + "\nif (a) { b; }.", "curly_bracket"), (FIVE + "\n{ b", None), ("", "too_few_sentences"),
        ("Dr. Who met Mr. Smith, e.g. in U.S. trains. " * 4, "too_few_sentences"),
    ],
)  # fmt: skip
def test_c4_drops_documents(text: str, expected: str | None) -> None:
    assert reason(STRICT_C4, text) == expected


def test_c4_removes_citations() -> None:
    assert (
        left(STRICT_C4, f"{FIVE}So it is [12] here[citation needed].") == f"{FIVE}So it is  here."
    )


def test_mc4() -> None:
    step = step_of("mc4", "c4_paragraphs")
    assert reason(step, "\n".join(["x" * 200] * 3)) is None
    assert reason(step, "\n".join(["x" * 200] * 2 + ["x" * 199])) == "too_few_long_lines"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("AB c", "AB c"), ("ABC d", ""), ("ÄÖ ü", "ÄÖ ü"), ("ÄÖÜ d", ""), ("1 2", "1 2"), ("123", ""),
        ("word", ""),
        ("3 likes", ""), ("• 1,204K Followers |", ""), ("3 likes each", "3 likes each"),
        ("There are 2 items in cart", "There are 2"), ("Items in cart", ""), ("Sign-in or go", "or go"),
        ("The news. Read more...", "The news."), ("Read more... of it", "Read more... of it"),
        ("one two three four five six seven eight items in cart",) * 2,
    ],
)  # fmt: skip
def test_refinedweb_lines(line: str, expected: str) -> None:
    prose = "\n".join(["Some words that stay are here."] * 100)
    assert left(LINES, f"{prose}\n{line}") == f"{prose}\n{expected}".strip()


def test_refinedweb_drops_documents_that_lose_too_many_words() -> None:
    prose = "\n".join(["Some words that stay are"] * 19)
    assert left(LINES, prose + "\nword" * 5) == prose
    assert reason(LINES, prose + "\nword" * 6) == "too_many_words_removed"
    assert reason(LINES, "word") == "empty"


def test_annotating_leaves_the_text_alone() -> None:
    draft = Draft(FIVE + "\nno", "web")
    STRICT_C4.annotate(draft)
    assert draft.text == FIVE + "\nno"
    assert draft.signals == {"c4.unpunctuated_lines": 1, "c4.kept_lines": 0.5, "c4.sentences": 5}


@settings(deadline=None)
@given(TEXTS)
def test_line_rules_invent_nothing(text: str) -> None:
    for step in (replace(STRICT_C4, min_sentences=None), replace(LINES, max_removed_words=1.0)):
        result = left(step, text)
        remaining = iter(text)
        assert result is None or all(
            character in remaining for character in result if character != "\n"
        )


@settings(deadline=None)
@given(TEXTS)
def test_lines_that_were_kept_are_kept_again(text: str) -> None:
    step = replace(LENIENT_C4, min_sentences=None, citations=False)
    once = left(step, text)
    assert once is None or left(step, once) == once
