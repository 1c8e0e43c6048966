"""Measures of the demonstration, compared with independent computations."""

from __future__ import annotations

import random
import warnings

from raymill.data.demo.stdlib_conversations import ConversationEntry
from raymill.demo.baselines import class_baselines, paired_interval
from raymill.demo.functions import WINDOW, first_function, longest_copy, parses
from raymill.evaluate.answers import POINTS, verdict


def entry(question: str, answer: str) -> ConversationEntry:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return ConversationEntry("", question, False, "k", {"messages": messages})


def test_baselines_find_what_can_be_copied() -> None:
    training = [entry(f"take {n} or {n + 1}", f"{n + 1}.") for n in range(20)]
    held_out = [entry(f"take {n} or {n + 1}", f"{n + 1}.") for n in range(50, 60)]
    assert class_baselines(training, held_out) == {"majority": 0.0, "copy": 1.0, "nearest": 0.0}


def test_paired_interval_covers_the_mean() -> None:
    choose = random.Random(0)
    inside = 0
    for _ in range(300):
        _, low, high = paired_interval([choose.gauss(0.5, 1) for _ in range(60)])
        inside += low < 0.5 < high
    assert 0.9 < inside / 300 < 0.98


def test_the_longest_copy_by_brute_force() -> None:
    choose = random.Random(1)
    documents = ["".join(choose.choices("ab", k=300)) for _ in range(4)]
    written = [
        "".join(choose.choices("abc", k=100)) + documents[2][17 : 17 + WINDOW + 9] + "c",
        documents[0][5 : 5 + WINDOW],
    ]
    found = longest_copy(written, documents)
    best = max(
        (
            text[i : i + n]
            for text in written
            for n in range(WINDOW, 60)
            for i in range(len(text) - n + 1)
            if any(text[i : i + n] in document for document in documents)
        ),
        key=len,
    )
    assert len(found) == len(best)
    assert any(found in document for document in documents)


def test_functions_end_where_the_indentation_does() -> None:
    assert first_function("def f(a):\n    return a\n\nx = 1\n") == "def f(a):\n    return a\n"
    assert parses(first_function("def f(a):\n    return a\n\nx = 1\n"))
    assert not parses("def f(:\n    pass\n")
    with warnings.catch_warnings(record=True, action="always") as caught:
        assert parses("def f():\n    return 1if f else 2\n")
    assert not caught, "Python's own warning would stand in the terminal"


def test_the_points_of_the_reward_rule() -> None:
    cases = {
        ("`size`.", "`size`."): "right",
        ("I don't know of `a.b`.", "I don't know of `a.b`."): "right",
        ("I don't know.", "`size`."): "declined",
        ("`mode`.", "`size`."): "wrong",
    }
    for (text, reference), expected in cases.items():
        assert verdict(text, reference) == expected, text
    assert POINTS == {"right": 1.0, "declined": 0.3, "wrong": 0.0}
