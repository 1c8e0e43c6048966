"""Agreement beyond chance: published examples, and alpha by its definition over all pairs of values."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.data.preference.judgments import (
    TIE,
    agreement,
    from_texts,
    hash64,
    judgment,
    nominal_alpha,
    pair_counts,
    shared_prompts,
    to_text,
)


def alpha(table: list[str]) -> float | None:
    """Return alpha of one row of values per observer, "." where one is missing."""
    marks = [
        (unit, value) for row in table for unit, value in enumerate(row.split()) if value != "."
    ]
    return nominal_alpha(
        np.array([unit for unit, _ in marks]), np.array([value for _, value in marks])
    )


# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), sections A, B and C.
PUBLISHED = {
    "two observers, binary": (["0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0"], 0.095),
    "two observers, nominal": (["a a b b d c c c e d d a", "b a b b b c c c e d d d"], 0.692),
    "any number of observers, missing values": (
        ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3",
         ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."], 0.743,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_examples(name: str) -> None:
    table, published = PUBLISHED[name]
    assert alpha(table) == pytest.approx(published, abs=5e-4)


def by_definition(unit: list[int], value: list[int]) -> float | None:
    """1 − D_o/D_e, each a mean of disagreement over pairs of values: within units, and of all."""
    units = defaultdict(list)
    for one, given_value in zip(unit, value, strict=True):
        units[one].append(given_value)
    pairable = [values for values in units.values() if len(values) >= 2]
    everything = [v for values in pairable for v in values]
    n = len(everything)

    def differing(values: list[int]) -> int:
        return sum(
            values[i] != values[j]
            for i in range(len(values))
            for j in range(len(values))
            if i != j
        )  # fmt: skip

    if n < 2 or not differing(everything):
        return None
    observed = sum(differing(values) / (len(values) - 1) for values in pairable) / n
    return 1 - observed / (differing(everything) / (n * (n - 1)))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), max_size=40))
def test_alpha_is_what_its_definition_says(marks: list[tuple[int, int]]) -> None:
    unit, value = [u for u, _ in marks], [v for _, v in marks]
    found, expected = nominal_alpha(np.array(unit), np.array(value)), by_definition(unit, value)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-9))


def test_bounds_and_what_is_undefined() -> None:
    assert alpha(["0 1 0 1", "0 1 0 1"]) == 1.0
    assert alpha(["0 1 0 1", "1 0 1 0"]) == pytest.approx(1 - 7 * 8 / 32)
    assert alpha(["0 0 0", "0 0 0"]) is None  # nothing varies
    assert alpha(["0 1 .", ". . 1"]) is None  # nobody judged what another did
    assert nominal_alpha(np.array([]), np.array([])) is None
    random = np.random.default_rng(0)
    unit, value = np.repeat(np.arange(4000), 2), random.integers(0, 2, 8000)
    assert abs(nominal_alpha(unit, value)) < 0.05  # type: ignore[arg-type]


def random_judgements(seed: int) -> list[tuple[str, str, str, str | None]]:
    """(prompt, better, worse, annotator); ties are "better=worse"."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(120):
        prompt = f"p{random.integers(6)}"
        better, worse = (f"{prompt}/{a}" for a in random.permutation(3)[:2])
        who = [None, "ann", "bob", "cy"][random.integers(4)]
        mark = "=" if random.random() < 0.2 else ">"
        found.append((prompt, f"{better}{mark}", worse, who))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_counts_of_a_folder(seed: int) -> None:
    """Counts equal those made with dictionaries of the judgments, also when handed on in two parts."""
    said = random_judgements(seed)

    def entry(prompt: str, better: str, worse: str, who: str | None) -> tuple[int, int, int, int]:
        sides = [text.encode().rjust(16) for text in (better[:-1], worse)]
        return judgment(*sides, better[-1] == "=", hash64(prompt.encode()), who)

    entries = [entry(*one) for one in said]
    judged = from_texts([to_text(entries[:50]), to_text([]), to_text(entries[50:])])
    assert judged.tolist() == entries

    preferred = [(p, b[:-1], w, who) for p, b, w, who in said if b[-1] == ">"]
    directions = {(b, w) for _, b, w, _ in preferred}
    assert pair_counts(judged) == {
        "prompts": len({p for p, _, _, _ in preferred}),
        "duplicates": len(preferred) - len(set(preferred)),
        "contradictions": sum((w, b) in directions for b, w in directions) // 2,
    }
    first: dict[tuple[frozenset[str], str], str] = {}
    for _, better, worse, who in said:
        if who is not None:
            value = "tie" if better[-1] == "=" else better[:-1]
            first.setdefault((frozenset((better[:-1], worse)), who), value)
    by_pair = defaultdict(dict)
    for (pair, who), value in first.items():
        by_pair[pair][who] = value
    several = {pair: marks for pair, marks in by_pair.items() if len(marks) >= 2}
    found = agreement(judged)
    assert found is not None
    assert found["pairs"] == len(several)
    assert found["judgements"] == sum(map(len, several.values()))
    assert found["annotators"] == len({who for marks in several.values() for who in marks})
    # Which of two answers is called the first is decided by their hashes.
    unit, value = [], []
    for number, (pair, marks) in enumerate(several.items()):
        one, other = sorted(pair, key=lambda text: text.encode().rjust(16))
        for mark in marks.values():
            unit.append(number)
            value.append({one: 0, other: 1, "tie": TIE}[mark])
    assert found["alpha"] == pytest.approx(by_definition(unit, value), abs=1e-6)


def test_prompts_on_both_sides() -> None:
    def judged(*prompts: str, tie: bool = False) -> str:
        return to_text(judgment(b"a", b"b", tie, hash64(p.encode()), None) for p in prompts)

    one, other = (
        from_texts([judged("p", "q", "q")]),
        from_texts([judged("q", "r"), judged("p", tie=True)]),
    )
    assert shared_prompts(one, other) == 1
    assert agreement(one) is None
