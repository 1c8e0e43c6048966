"""Ranking rules: their preferences, their noise, and their label `synthetic:` on every judgment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from annotate.site_factory import asked, numbered
from raymill.annotate.items import Item, SampledAnswer
from raymill.annotate.ranking_rules import rank_with_rule, resolve_rule
from raymill.annotate.tasks import Task, next_task, progress
from raymill.errors import ConfigError

ITEM = Item("an-item", "a-prompt", ({"role": "user", "content": "?"},), "the cat sat down")


def answers(*texts: str) -> list[SampledAnswer]:
    return [SampledAnswer(text, (), "stop", "model", "digest", 1, {}) for text in texts]


def test_answer_f1_prefers_what_ends_and_then_what_is_near_the_reference() -> None:
    rule = resolve_rule("answer_f1", 0, 1)
    # SQuAD's F1, by hand: "the" doesn't count; 3 of 3, 2 of 3, none.
    given = answers("a dog barked", "The cat sat down.", "cat down", "Cat sat, down!")
    assert rule.rank(ITEM, given) == (3, 1, 2, 1)
    given[1] = replace(given[1], finish="length")
    assert rule.rank(ITEM, given) == (3, 4, 2, 1)
    assert rule.rank(replace(ITEM, reference=None), given) is None


def test_length_prefers_the_shorter() -> None:
    assert resolve_rule("length", 0, 1).rank(ITEM, answers("long one", "short", "other")) == (
        2,
        1,
        1,
    )


def test_noise_turns_its_share_round() -> None:
    plain, noisy = resolve_rule("length", 0, 1), resolve_rule("length", 0.25, 1)
    assert noisy.name == "length+noise0.25"
    given = answers("a", "bb", "bb", "cccc")
    assert plain.rank(ITEM, given) == (1, 2, 2, 3)
    items = [replace(ITEM, prompt_id=f"prompt {number}") for number in range(2000)]
    found = [noisy.rank(item, given) for item in items]
    assert set(found) == {(1, 2, 2, 3), (3, 2, 2, 1)}
    assert abs(found.count((3, 2, 2, 1)) - 500) < 60  # three standard deviations
    assert found == [resolve_rule("length", 0.25, 1).rank(item, given) for item in items]
    assert found != [resolve_rule("length", 0.25, 2).rank(item, given) for item in items]


def test_an_unknown_rule_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match="answer_f1, right_or_honest, length; did you mean length"
    ):
        resolve_rule("lenght", 0, 1)


def test_all_are_judged_once_under_a_name_that_says_so(tmp_path: Path) -> None:
    database, _ = asked(
        tmp_path, 6, answers=3, write=lambda q, seed, n: "x" * (n + 1), references=["x"] * 5
    )
    rule = resolve_rule("length", 0, 1)
    assert rank_with_rule(database, rule) == {"ranked": 6}
    assert rank_with_rule(database, rule) == {"ranked": 6}  # again: nothing is added
    rows = database.rows("SELECT * FROM judgements ORDER BY number")
    assert len(rows) == 6
    for row in rows:
        assert row["annotator"] == row["judge"] == "synthetic:length"
        shown = [one["place"] for one in json.loads(row["shown"])]
        ranks = json.loads(row["ranks"])
        # Answers were made ever longer, so the order of the places is that of the lengths.
        assert [ranks[shown.index(place)] for place in range(3)] == [1, 2, 3]
    orders = {tuple(one["place"] for one in json.loads(row["shown"])) for row in rows}
    assert len(orders) > 1
    # Five have a reference, which one answer is like; the sixth can't be judged by it.
    assert rank_with_rule(database, resolve_rule("answer_f1", 0, 1)) == {
        "ranked": 1,
        "tie": 4,
        "skip": 1,
    }
    # A rule's judgments don't count as people's.
    assert progress(database, "rank", "Ada", 1).done == 0
    assert isinstance(next_task(database, "rank", "Ada", 1), Task)
    database.close()
    database, _ = asked(tmp_path, 2, write=numbered)
    assert rank_with_rule(database, rule) == {"ranked": 2}
