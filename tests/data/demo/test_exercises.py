"""Exercises: their answers by another computation, and nothing held out in what is trained on."""

from __future__ import annotations

import ast
import re
from collections import Counter
from itertools import islice

import pytest

from raymill.data.demo.conversations import HELD_OUT, TRAINING, conversations
from raymill.data.demo.corpus import documents, parts
from raymill.data.demo.exercises import ENDS, KINDS, exercises
from raymill.data.demo.names import index, name_questions

FRACTION, SEED = 0.04, 1234


def arguments(text: str) -> ast.arguments:
    """Parse the arguments of the call in a question with Python's own parser."""
    [call] = re.findall(r"`(\w+\(.*?\))`", text)
    return ast.parse(f"def {call}: pass").body[0].args  # type: ignore[attr-defined]


def expected(kind: str, question: str) -> str:
    """The answer, worked out from the question's text alone."""
    numbers = [int(found) for found in re.findall(r"\d+", question)]
    if kind == "sum":
        return f"{sum(numbers)}."
    if kind == "beyond":
        assert max(numbers) >= 100, question
        return "I don't know."
    if kind == "larger":
        return f"{max(numbers)}."
    if kind == "backwards":
        [spelled] = re.findall(r"\w(?:-\w)+", question)
        return f"{spelled[::-1]}."
    found = arguments(question)
    names = [one.arg for one in found.args]
    if kind == "count":
        return f"{len(names)}."
    if kind == "position":
        before, _, after = question.split("`")
        [end] = [word for word in ENDS if f" {word}" in after or f" {word} " in before]
        return f"`{names[0 if end == 'first' else -1]}`."
    [asked] = [part for part in re.findall(r"`([^`]*)`", question) if "(" not in part]
    place = names.index(asked)
    defaults = [None] * (len(names) - len(found.defaults)) + [*found.defaults]
    return f"`{ast.unparse(defaults[place])}`."  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held_out", [False, True])
def test_answers_are_right(kind: str, held_out: bool) -> None:
    for one in islice(exercises(kind, held_out, SEED), 300):
        assert one.answer == expected(kind, one.question), one


def test_the_same_again_and_others_by_seed() -> None:
    for kind in KINDS:
        first, again, other = (
            [*islice(exercises(kind, False, seed), 20)] for seed in (SEED, SEED, SEED + 1)
        )
        assert first == again, kind
        assert first != other, kind


def test_nothing_held_out_is_trained_on() -> None:
    held_out = {e.group for e in conversations(FRACTION, SEED) if e.held_out}
    training = {e.group for e in conversations(FRACTION, SEED) if not e.held_out}
    assert not held_out & training
    notes = "\n".join(text for part in parts(FRACTION, SEED) for text in documents(part))
    signatures = set(re.findall(r"`(\w+\([^`]*\))`", notes))
    operands = {
        " ".join(sorted(pair, key=int))
        for pair in re.findall(r"(\d+) \+ (\d+)|(?:Of|Add) (\d+) and (\d+)|(\d+),? or (\d+)", notes)
        for pair in [tuple(filter(None, pair))]
    }
    words = {
        min(word.replace("-", ""), word.replace("-", "")[::-1])
        for pair in re.findall(r"(\w(?:-\w)+) backwards|Reverse (\w(?:-\w)+)", notes)
        for word in filter(None, pair)
    }
    assert signatures and operands and words
    assert not held_out & (signatures | operands | words)


def test_counts() -> None:
    found = Counter((e.kind, e.held_out) for e in conversations(FRACTION, SEED))
    for kind in KINDS:
        assert (found[kind, False], found[kind, True]) == (TRAINING[kind], HELD_OUT), kind
    assert found["library", True] >= 100


def test_the_index_has_every_held_out_name_and_no_made_up_one_that_is_asked_about() -> None:
    real, made_up = index(FRACTION, SEED)
    questions = name_questions(FRACTION, SEED)
    assert {one.name for one in questions if one.held_out and one.kind == "library"} <= {*real}
    assert not {one.name for one in questions if one.held_out and one.kind == "unknown"} & {
        *real,
        *made_up,
    }
    held_out = {one.question for one in questions if one.held_out}
    assert not held_out & {one.question for one in questions if not one.held_out}


def test_names_are_asked_about_once() -> None:
    names = [one.name for one in name_questions(FRACTION, SEED)]
    assert len(names) == len(set(names))
