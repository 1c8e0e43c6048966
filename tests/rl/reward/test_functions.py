"""Every registered function but `code`, which has a file of its own."""

from __future__ import annotations

import time

import pytest

from raymill.rl.reward.functions import REWARDS, register
from raymill.rl.reward.task import RewardError, Sample
from rl.reward.samples import sample


def test_exact() -> None:
    exact = REWARDS["exact"]
    assert exact(sample("so…\n#### 1,000", "… #### 1000.0")) == 1.0
    assert exact(sample("#### 1,001", "#### 1000")) == 0.0
    assert exact(sample("The answer is 5", "5")) == 1.0
    assert exact(sample("It must be 5", "5")) == 0.0  # no marker: the whole text
    assert exact(sample("", "")) == 1.0


def test_a_thought_is_no_answer() -> None:
    """Functions that compare with the reference look at what follows the reasoning."""
    thought = "<think>Maybe Paris, or Rome?\n```python\nx = 1\n```</think>\n"
    for name in ("exact", "contains", "answer_f1", "right_or_honest"):
        reward = REWARDS[name]
        assert reward(sample(f"{thought}Paris", "Paris")) == 1.0, name
        assert reward(sample(f"{thought}Rome", "Paris")) == 0.0, name
        assert reward(sample(f"{thought}Paris", f"{thought}Paris")) == 1.0, name
        assert reward(sample("<think>Paris", "Paris")) == 0.0, name
        assert reward(sample("Rome?</think>Paris", "Paris", in_reasoning=True)) == 1.0, name
        assert reward(sample("Paris", "Paris", in_reasoning=True)) == 0.0, f"{name}: cut off"
        with pytest.raises(RewardError, match=r"^no reference: nothing follows the reasoning"):
            reward(sample("Paris", "<think>Paris"))
    assert REWARDS["code"](sample(f"{thought}x = 2", "assert x == 1")) == 0.0
    assert REWARDS["regex"](sample(f"{thought}Paris", r"\A<think>.*</think>(?s:.)*\Z")) == 0.0
    assert REWARDS["regex"](sample(f"{thought}Paris", r"(?s)\A<think>.*</think>.*\Z")) == 1.0


def test_contains() -> None:
    contains = REWARDS["contains"]
    assert contains(sample("It is  in New\nYork.", "new york")) == 1.0
    assert contains(sample("It is in York.", "new york")) == 0.0
    with pytest.raises(RewardError, match=r"^empty reference:"):
        contains(sample("x", " "))


def test_regex() -> None:
    regex = REWARDS["regex"]
    assert regex(sample("a\n12 b", r"(?m)^\d+")) == 1.0
    assert regex(sample("a12", r"\A\d+\Z")) == 0.0
    with pytest.raises(RewardError, match=r"^broken reference: not a regular expression"):
        regex(sample("a", "("))


def test_a_regex_that_backtracks_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymill.rl.reward.functions.REGEX_SECONDS", 0.2)
    begin = time.monotonic()
    with pytest.raises(RewardError, match=r"^timeout:"):
        REWARDS["regex"](sample("a" * 60 + "!", r"^(a+)+$"))
    assert time.monotonic() - begin < 30, "it would take years"
    assert REWARDS["regex"](sample("a", "a")) == 1.0


def test_answer_f1_length_ended() -> None:
    assert REWARDS["answer_f1"](sample("red red blue", "red blue blue")) == pytest.approx(2 / 3)
    assert REWARDS["length"](sample("a b c", ids=(5, 6, 7, 2))) == 4.0
    assert REWARDS["ended"](sample(finished=True)) == 1.0
    assert REWARDS["ended"](sample(finished=False)) == 0.0


def test_token_share() -> None:
    share = REWARDS["token_share"]
    assert share(sample(ids=(1, 2, 2, 3), extra={"tokens": [2, 9]})) == 0.5
    assert share(sample(ids=(), extra={"tokens": [2]})) == 0.0
    with pytest.raises(RewardError, match=r"^no tokens:"):
        share(sample(ids=(1,)))


@pytest.mark.parametrize("name", ["exact", "contains", "regex", "answer_f1", "code"])
def test_what_compares_needs_a_reference(name: str) -> None:
    with pytest.raises(RewardError, match=r"^no reference:"):
        REWARDS[name](sample("x"))


def test_auto_is_the_prompts_own_function() -> None:
    auto = REWARDS["auto"]
    assert auto(sample("5", "5", verifier="exact")) == 1.0
    assert auto(sample("a 5", "5", verifier="contains")) == 1.0
    for verifier in (None, "none"):
        with pytest.raises(RewardError, match=r"^no verifier:"):
            auto(sample("5", "5", verifier=verifier))
    with pytest.raises(RewardError, match=r"^unknown verifier: .*did you mean exact"):
        auto(sample("5", "5", verifier="exakt"))


@pytest.mark.parametrize("verifier", ["auto", "os:system", "rl.reward.hostile:behave", "http://x/"])
def test_prompts_name_neither_code_nor_addresses(verifier: str) -> None:
    with pytest.raises(RewardError, match=r"^unknown verifier:"):
        REWARDS["auto"](sample("5", "5", verifier=verifier))


def test_a_name_is_given_once() -> None:
    def again(sample: Sample) -> float:
        return 0.0

    with pytest.raises(ValueError, match="registered already"):
        register("exact")(again)
