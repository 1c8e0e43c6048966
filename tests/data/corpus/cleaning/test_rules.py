"""Words as spaCy cuts them, rules in any order, and FineWeb-2's thresholds by language."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.corpus.cleaning.presets import preset, reason, step_of
from raymill.data.corpus.draft import Draft
from raymill.data.corpus.words import Words, count_sentences


# Each result is what spaCy 3.8's blank English pipeline gives.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world.", "Hello , world ."),
        ('He said: "(Well...)"!', 'He said : " ( Well ... ) " !'),
        ("well-known black/white 3.14 1,000 (5km) 50%", "well - known black / white 3.14 1,000 ( 5 km ) 50 %"),
        ("the dog's bone, e.g. this. U.S. law", "the dog 's bone , e.g. this . U.S. law"),
        ("see https://a-b.org/c-d?e=f. www.foo-bar.com", "see https://a-b.org/c-d?e=f . www.foo-bar.com"),
        ("f(x) foo_bar --flag -v a=b", "f(x ) foo_bar --flag -v a = b"),
        ("naïve café “quoted” – dash", "naïve café “ quoted ” – dash"),
        ("mail <a.b@c-d.org>", "mail < a.b@c-d.org >"),
        ("", ""),
    ],
)  # fmt: skip
def test_words_are_cut_as_by_spacy(text: str, expected: str) -> None:
    assert Words.of(text).texts == expected.split()


def test_chinese_and_japanese_characters_are_words() -> None:
    assert Words.of("你好，世界。x").texts == ["你", "好", "，", "世", "界", "。", "x"]


@settings(deadline=None)
@given(st.text())
def test_words_are_the_text_without_white_space(text: str) -> None:
    words = Words.of(text)
    assert "".join(words.texts) == "".join(text.split())
    assert words.offsets[-1] == sum(map(len, words.texts))
    assert 0 <= words.marks.marks <= words.marks.letterless <= len(words)


@pytest.mark.parametrize(
    "piece", ["(", "a.b-", "a)", ")a", "'", "a@", "1.", "a/", "..", "é-", "a:", "x?y", "http://"]
)
def test_a_long_line_takes_time_in_proportion(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    Words.of(text)
    count_sentences(text)
    assert time.process_time() - started < 10


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["The fish and the sea.", "- one\n- two", "...", "a a a a a a\n"]),
        max_size=30,
    )
)
def test_steps_that_change_no_text_drop_the_same_documents_in_any_order(parts: list[str]) -> None:
    steps = [preset("fineweb")[key] for key in ("gopher_repetition", "gopher_quality", "fineweb")]
    text = " ".join(parts)
    forward, backward = Draft(text, "web"), Draft(text, "web")
    assert any(step.clean(forward) for step in steps) == any(
        step.clean(backward) for step in reversed(steps)
    )
    assert forward.text == backward.text == text


def test_fineweb2_has_thresholds_by_language() -> None:
    steps = preset("fineweb2")
    german = steps["gopher_quality"].languages["de"]
    text = "der und " + "Donaudampfschiff " * 20 + "Fisch " * 30
    assert reason(german, text) is None
    assert reason(step_of("gopher", "gopher_quality"), text) == "too_few_stop_words"
    assert set(steps["fineweb"].languages) == set(steps["gopher_repetition"].languages)
    assert set(steps["gopher_quality"].languages) == {*steps["fineweb"].languages, "en"}
