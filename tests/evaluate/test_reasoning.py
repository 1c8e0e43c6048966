"""The end of reasoning, in the marks of the templates that models ship."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymill.evaluate.answers import Answer, score
from raymill.evaluate.reasoning import after_reasoning, opens_reasoning

HARMONY = "<|channel|>analysis<|message|>41?<|end|><|start|>assistant<|channel|>final<|message|>42"


@pytest.mark.parametrize(
    "text",
    [
        "<think>41?</think>42", "41?</think>42", "<think>\n<think>a</think>41?</think>42",
        "<THINK>41?</THINK>42",
        "<think>41?</think> 40? <think>41?</think>42", "<thinking>41?</thinking>42", "<thought>41?</thought>42",
        "<reasoning>41?</reasoning>42", "<seed:think>41?</seed:think>42", "[THINK]41?[/THINK]42",
        "◁think▷41?◁/think▷42", "<|begin_of_thought|>41?<|end_of_thought|>42",
        "<|START_THINKING|>41?<|END_THINKING|>42", "<|think:start|>41?<|think:end|>42",
        "<|inner_prefix|>41?<|inner_suffix|>42", "<unused94>thought\n41?<unused95>42",
        "<|channel>thought\n41?<channel|>42", "Here is my thought process: 41? Here is my response:42",
        HARMONY, HARMONY + "<|return|>", HARMONY + "<|end|>", "<|channel|>final<|message|>42",
        "<|channel|>analysis<|message|>41?<|end|><|start|>assistant<|channel|>commentary<|message|>call<|call|>"
        "<|start|>assistant<|channel|>final <|constrain|>json<|message|>42",
    ],
)  # fmt: skip
def test_what_follows_reasoning_is_said(text: str) -> None:
    assert after_reasoning(text).strip() == "42"


@pytest.mark.parametrize(
    "text",
    [
        "<think>42", "<think>a</think>b<think>42", "[THINK]42", "<|channel|>analysis<|message|>42",
        "<|channel|>analysis<|message|>42<|end|>", HARMONY + "<|end|><|start|>assistant<|channel|>analysis",
        "<|channel|>commentary<|message|>42<|call|>", "<|channel>thought\n42", "<unused94>thought\n42",
    ],
)  # fmt: skip
def test_of_reasoning_that_does_not_end_nothing_is_said(text: str) -> None:
    assert after_reasoning(text) == ""


def test_reasoning_that_the_prompt_opened() -> None:
    assert after_reasoning("41? 42", in_reasoning=True) == ""
    assert after_reasoning("41?</think>42", in_reasoning=True) == "42"
    assert after_reasoning("I think, therefore I am [think](x) <b>42</b>") != ""


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|im_start|>assistant\n<think>\n", True), ("<|Assistant|><think>", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False), ("<|im_start|>assistant\n", False),
        ("<|start|>assistant<|channel|>analysis<|message|>", True),
        ("<|turn>model\n<|channel>thought\n<channel|>", False),
        ("<|start|>assistant<|channel|>final<|message|>", False),
        ("What does <think> mean?<|assistant|>", False),
        ("[THINK]", True), ("", False),
    ],
)  # fmt: skip
def test_whether_a_prompt_opens_reasoning(prompt: str, opens: bool) -> None:
    assert opens_reasoning(prompt) is opens


@given(st.text(st.sampled_from("<>|/thinkcael [THINK]◁▷42\n"), max_size=200))
def test_any_text_can_be_asked(text: str) -> None:
    assert text.endswith(after_reasoning(text)) or "<|channel|>" in text
    opens_reasoning(text)


def test_held_out_answers_are_scored_without_their_reasoning() -> None:
    asked = [
        Answer("q", "Paris", "<think>Rome?</think>Paris", True),
        Answer("q", "<think>Which?</think>Paris", "Paris", True),
        Answer("q", "Paris", "Rome?</think>\nParis", True, in_reasoning=True),
        Answer("q", "Paris", "Paris", False, in_reasoning=True),  # cut off while it thought
        Answer("q", "Paris", "<think>Paris</think>Rome", True),
    ]
    scores = score(asked, "")
    assert scores.exact == pytest.approx(3 / 5)
    assert scores.f1 == pytest.approx(3 / 5)
    assert scores.empty == 0
