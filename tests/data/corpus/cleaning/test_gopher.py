"""Gopher's rules: every threshold just within and just beyond, and n-grams against a count by hand."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.corpus.cleaning.presets import alone, reason, step_of
from raymill.data.corpus.cleaning.gopher_quality import GopherQuality
from raymill.data.corpus.draft import Draft
from raymill.data.corpus.ngrams import repeated_ngrams
from raymill.data.corpus.words import Words

QUALITY: GopherQuality = step_of("gopher", "gopher_quality")
REPETITION = step_of("gopher", "gopher_repetition")
NUMBERS = [str(1000 + i) for i in range(30)]


def prose(words: int, *others: str) -> str:
    return " ".join(["the", "and", *["fish"] * (words - 2), *others])


def ten_lines(marked: int, before: str = "", after: str = "") -> str:
    line = "the fishes and the sea"
    return "\n".join([f"{before}{line}{after}"] * marked + [line] * (10 - marked))


@pytest.mark.parametrize(
    ("within", "beyond", "expected"),
    [
        (prose(50), prose(49), "too_few_words"),
        (prose(50, *"!?!?!"), prose(49, *"!?!?!"), "too_few_words"),
        (prose(100_000), prose(100_001), "too_many_words"),
        ("the and " + "cat " * 48, "the and " + "cat " * 47 + "ca", "short_words"),
        ("the and " + "x" * 24 + " catapulted" * 47, "the and " + "x" * 25 + " catapulted" * 47, "long_words"),
        (prose(90, *"#" * 10), prose(90, *"#" * 11), "too_many_hashes"),
        (prose(89, *["..."] * 10, "end"), prose(89, *["..."] * 11, "end"), "too_many_ellipses"),
        (prose(89, *"…" * 10, "end"), prose(89, *"…" * 11, "end"), "too_many_ellipses"),
        (ten_lines(9, "• "), ten_lines(10, "• "), "too_many_bullets"),
        (ten_lines(9, " - "), ten_lines(10, " - "), "too_many_bullets"),
        (ten_lines(3, after=" … "), ten_lines(4, after=" … "), "lines_cut_off"),
        (prose(80, *NUMBERS[:20]), prose(80, *NUMBERS[:21]), "words_without_letters"),
        ("the and " + "fish " * 50, "the the The " + "fish " * 50, "too_few_stop_words"),
    ],
)  # fmt: skip
def test_quality(within: str, beyond: str, expected: str) -> None:
    assert reason(QUALITY, within) is None
    assert reason(QUALITY, beyond) == expected


def test_stop_words_are_counted_once_or_each_time() -> None:
    text = "the the " + "fish " * 50
    assert reason(step_of("refinedweb", "gopher_quality"), text) is None
    assert reason(QUALITY, text) == "too_few_stop_words"


def lines(distinct: int, repeated: int, between: str) -> str:
    return between.join([*(f"line {i:04}" for i in range(distinct)), *["line 0000"] * repeated])


def grams(n: int, length: int) -> str:
    """Return a text of a length in which n letters in a row occur twice."""
    text = " ".join("abcdefghij"[:n] * 2) + " "
    return text + "z" * (length - len(text))


@pytest.mark.parametrize(
    ("rule", "within", "beyond"),
    [
        ("max_duplicate_lines", lines(7, 3, "\n"), lines(6, 4, "\n")),
        ("max_duplicate_paragraphs", lines(7, 3, "\n\n\n"), lines(6, 4, "\n\n")),
        # 9 of 45 characters; 9 of 44.
        ("max_duplicate_line_characters", "line 0000\n" * 2 + "x" * 25, "line 0000\n" * 2 + "x" * 24),
        ("max_duplicate_paragraph_characters", "line 0000\n\n" * 2 + "x" * 23, "line 0000\n\n" * 2 + "x" * 22),
        # "a b" four times: 12 of 60 characters; 12 of 59.
        ("max_top_2gram", "a b " * 4 + "z" * 44, "a b " * 4 + "z" * 43),
        ("max_top_3gram", grams(3, 56), grams(3, 55)),
        ("max_top_4gram", grams(4, 88), grams(4, 87)),
        *(
            (f"max_duplicate_{n}grams", grams(n, length), grams(n, length - 1))
            for n, percent in zip(range(5, 11), range(15, 9, -1), strict=True)
            for length in [math.ceil(n * 100 / percent)]
        ),
    ],
)  # fmt: skip
def test_repetition(rule: str, within: str, beyond: str) -> None:
    step = alone(REPETITION, rule)
    assert reason(step, within) is None
    assert reason(step, beyond) == rule.removeprefix("max_")


def test_repetition_of_nothing() -> None:
    assert reason(REPETITION, "") == "empty"
    assert reason(REPETITION, "word") is None


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), max_size=60))
def test_ngrams_are_those_found_one_by_one(words: list[str]) -> None:
    for repeated in repeated_ngrams(Words(words), 10):
        n = repeated.n
        all_grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        top = Counter(all_grams).most_common(1)
        assert repeated.top_characters(Words(words)) == sum(
            len(" ".join(gram)) * count for gram, count in top
        )
        seen: set[tuple[str, ...]] = set()
        duplicate = i = 0
        while i < len(all_grams):
            if all_grams[i] in seen:
                duplicate += len("".join(all_grams[i]))
                i += n
            else:
                seen.add(all_grams[i])
                i += 1
        assert repeated.duplicate_characters(Words(words)) == duplicate


def test_annotating_notes_every_signal_of_a_document_that_the_first_rule_drops() -> None:
    cut, noted = Draft("Too short.", "web"), Draft("Too short.", "web")
    assert QUALITY.apply(cut) == "too_few_words"
    QUALITY.annotate(noted)
    assert cut.signals == {"gopher_quality.words": 2}
    assert noted.signals == {
        "gopher_quality.words": 2, "gopher_quality.word_length": 4, "gopher_quality.hashes_per_word": 0,
        "gopher_quality.ellipses_per_word": 0, "gopher_quality.bullet_lines": 0,
        "gopher_quality.ellipsis_lines": 0, "gopher_quality.words_with_letter": pytest.approx(2 / 3),
        "gopher_quality.stop_words": 0,
    }  # fmt: skip
