"""Comparisons in every format, and what is said of those that aren't any."""

from __future__ import annotations

from typing import Any

import pytest

from raymill.data.messages.conversation import Problem
from raymill.data.preference.comparison import CAUSES, Comparison, Pair, read_comparison
from raymill.errors import DataError


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def read(record: Any, format: str | None = None) -> Comparison:
    found = read_comparison(record, format)
    assert isinstance(found, Comparison), found
    return found


def spelled(found: Comparison) -> list[tuple[str, str]]:
    """(prompt, answer) of every answer, as `role: text` lines."""
    sides = []
    for answer in found.answers:
        lines = [f"{m['role']}: {m['content']}" for m in answer.messages]
        sides.append(
            ("\n".join(lines[: answer.prompt_length]), "\n".join(lines[answer.prompt_length :]))
        )
    return sides


SIMPLE = {
    "text": {"prompt": "Hi?", "chosen": "Yo", "rejected": "No"},
    "messages and text": {"prompt": [user("Hi?")], "chosen": "Yo", "rejected": "No"},
    "messages": {
        "prompt": [user("Hi?")], "chosen": [assistant("Yo")], "rejected": [assistant("No")],
    },
    "text and messages": {
        "prompt": "Hi?", "chosen": [assistant("Yo")], "rejected": [assistant("No")],
    },
    "text and whole conversations": {  # as UltraFeedback has it
        "prompt": "Hi?",
        "chosen": [user("Hi?"), assistant("Yo")], "rejected": [user("Hi?"), assistant("No")],
    },
    "messages and whole conversations": {
        "prompt": [user("Hi?")],
        "chosen": [user("Hi?"), assistant("Yo")], "rejected": [user("Hi?"), assistant("No")],
    },
    "implicit prompt": {
        "chosen": [user("Hi?"), assistant("Yo")], "rejected": [user("Hi?"), assistant("No")],
    },
    "implicit, nulls": {
        "prompt": None, "margin": None, "tie": None, "annotator": None,
        "chosen": [user("Hi?"), assistant("Yo")], "rejected": [user("Hi?"), assistant("No")],
    },
    "hh": {
        "chosen": "\n\nHuman: Hi?\n\nAssistant: Yo", "rejected": "\n\nHuman: Hi?\n\nAssistant: No",
    },
    "hh, stripped": {
        "chosen": "Human: Hi?\n\nAssistant: Yo", "rejected": "Human: Hi? \n\nAssistant: No \n",
    },
    "ranks": {"prompt": "Hi?", "answers": ["Yo", "No"], "ranks": [1, 2]},
    "scores of messages": {
        "messages": [user("Hi?")], "answers": [[assistant("Yo")], "No"], "scores": [0.5, 0.5 - 1e-3],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SIMPLE)
def test_formats_agree(name: str) -> None:
    found = read(SIMPLE[name])
    assert spelled(found) == [("user: Hi?", "assistant: Yo"), ("user: Hi?", "assistant: No")]
    [pair] = found.pairs
    assert (pair.better, pair.worse) == (0, 1)
    assert pair.margin == pytest.approx(1e-3 if "scores" in name else 0.0)
    assert (found.ties, found.weight, found.annotator) == ((), 1.0, None)
    assert found.first_user == "Hi?"
    assert found.prompt_key == read(SIMPLE["text"]).prompt_key


def test_conversations_of_several_turns() -> None:
    hh = {
        "chosen": "\n\nHuman: a\nb\n\nAssistant: c\n\nc\n\nHuman: d\n\nAssistant: e: Human: f",
        "rejected": "\n\nHuman: a\nb\n\nAssistant: c\n\nc\n\nHuman: d\n\nAssistant: g",
    }
    prompt = "user: a\nb\nassistant: c\n\nc\nuser: d"
    assert spelled(read(hh)) == [(prompt, "assistant: e: Human: f"), (prompt, "assistant: g")]
    # They part at an earlier answer: what follows it belongs to the answers.
    system = {"role": "system", "content": "s"}
    record = {
        "chosen": [system, user("a"), assistant("b"), user("c"), assistant("d")],
        "rejected": [system, user("a"), assistant("B"), user("e"), assistant("f")],
    }
    prompt = "system: s\nuser: a"
    assert spelled(read(record)) == [
        (prompt, "assistant: b\nuser: c\nassistant: d"),
        (prompt, "assistant: B\nuser: e\nassistant: f"),
    ]


def test_tools() -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}
    prompt = [user("a"), call, {"role": "tool", "content": "5"}]
    tools = [{"name": "f"}]
    record = {"prompt": prompt, "chosen": "It is 5.", "rejected": "No.", "tools": tools}
    found = read(record)
    assert found.answers[0].prompt_length == 3 and found.answers[0].tools == ({"name": "f"},)
    assert found.prompt_key != read({**record, "tools": None}).prompt_key
    acted = {"prompt": "a", "chosen": [*prompt[1:], assistant("5")], "rejected": "No."}
    assert isinstance(read_comparison({**acted, "rejected": [assistant("No.")]}), Comparison)


def test_rankings_become_all_pairs() -> None:
    found = read({"prompt": "q", "answers": ["a", "b", "c", "d"], "ranks": [2, 1, 2, 3]})
    assert {(pair.better, pair.worse) for pair in found.pairs} == {
        (1, 0),
        (1, 2),
        (1, 3),
        (0, 3),
        (2, 3),
    }
    assert found.ties == ((0, 2),)
    assert {pair.margin for pair in found.pairs} == {0.0}
    found = read({"prompt": "q", "answers": ["a", "b", "c"], "scores": [0.25, -1, 0.25]})
    assert found.pairs == (Pair(0, 1, 1.25), Pair(2, 1, 1.25))
    assert found.ties == ((0, 2),)


def test_what_else_a_record_may_say() -> None:
    plain = SIMPLE["text"]
    found = read({**plain, "margin": 1.5, "weight": 2, "annotator": 17, "prompt_id": "x"})
    assert (found.pairs[0].margin, found.weight, found.annotator) == (1.5, 2.0, "17")
    found = read({**plain, "tie": True})
    assert (found.pairs, found.ties) == ((), ((0, 1),))
    assert read({**plain, "tie": False}).pairs
    assert read({**plain, "annotator": " "}).annotator is None
    assert read({**SIMPLE["ranks"], "annotator": "ann", "weight": 0.5}).weight == 0.5


BAD: dict[str, tuple[Any, str, str]] = {
    "no object": ([1], "type", "expected an object, found a list"),
    "no columns": ({"text": "x"}, "format", "none of the formats pairs, hh, rankings (has text)"),
    "one answer": ({"prompt": "q", "chosen": "a"}, "format", "none of the formats"),
    "ranks missing": ({"prompt": "q", "answers": ["a", "b"]}, "format", "has answers, prompt"),
    "text without a prompt": (
        {"chosen": "abc", "rejected": "abd"}, "format", "chosen: expected text that begins with "
        "'Human:', found 'abc'",
    ),
    "hh from the assistant": (
        {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "prompt", "no common",
    ),
    "hh and messages": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": [user("a")]}, "type",
        "column 'rejected' holds a list, expected text",
    ),
    "hh, two humans": (
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c",
         "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: d"}, "order",
        "prompt and chosen: message 2: user after the user",
    ),
    "hh, nothing said": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"},
        "empty", "prompt and rejected: message 2: the assistant's content is empty",
    ),
    "other beginnings": (
        {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
        "prompt", "no common beginning",
    ),
    "parting at the user": (
        {"chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
         "rejected": [user("a"), assistant("b"), user("e"), assistant("d")]},
        "prompt", "differ from message 3 on, which is chosen's user",
    ),
    "one goes on": (
        {"chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
         "rejected": [user("a"), assistant("b")]},
        "prompt", "differ from message 3 on, which is chosen's user",
    ),
    "other ends": (
        {"chosen": [user("a"), assistant("b")],
         "rejected": [user("a"), assistant("b"), assistant("c")]},
        "prompt", "differ from message 3 on, which is chosen's end",
    ),
    "identical, of one message": (
        {"chosen": [user("a")], "rejected": [user("a")]}, "empty", "the prompt holds no messages",
    ),
    "prompt ends with the assistant": (
        {"prompt": [user("a"), assistant("b")], "chosen": [user("c"), assistant("d")],
         "rejected": [user("c"), assistant("e")]},
        "order", "the prompt ends with the assistant, expected user or tool",
    ),
    "system alone": (
        {"prompt": [{"role": "system", "content": "s"}], "chosen": [user("c"), assistant("d")],
         "rejected": [user("c"), assistant("e")]},
        "order", "the prompt ends with the system, expected user or tool",
    ),
    "answer of a tool": (
        {"prompt": [user("a"), {"role": "assistant", "tool_calls": [{"name": "f"}]},
                    {"role": "tool", "content": "1"}],
         "chosen": [{"role": "tool", "content": "2"}, assistant("b")], "rejected": "c"},
        "order", "chosen begins with the tool, expected assistant",
    ),
    "answer of the user": (
        {"prompt": "a", "chosen": [user("b")], "rejected": [assistant("b")]}, "no_assistant",
        "prompt and chosen: none of 2 messages is the assistant's",
    ),
    "empty prompt": ({"prompt": " ", "chosen": "a", "rejected": "b"}, "empty", "message 1"),
    "empty answer": ({"prompt": "q", "chosen": "a", "rejected": ""}, "empty", "rejected: message 2"),
    "prompt of no messages": ({"prompt": [], "chosen": "a", "rejected": "b"}, "empty", "prompt holds no"),
    "answer of no messages": ({"prompt": "q", "chosen": [], "rejected": "b"}, "empty", "chosen holds no"),
    "unknown role": (
        {"prompt": [{"role": "narrator", "content": "x"}], "chosen": "a", "rejected": "b"}, "role",
        "the role is 'narrator'",
    ),
    "number for a prompt": ({"prompt": 5, "chosen": "a", "rejected": "b"}, "type", "prompt is a number"),
    "number for an answer": ({"prompt": "q", "chosen": "a", "rejected": 5}, "type", "rejected is a number"),
    "text among messages": (
        {"prompt": ["q"], "chosen": "a", "rejected": "b"}, "type", "prompt: message 1 is text",
    ),
    "image": (
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a",
         "rejected": "b"}, "type", "content part 1 is 'image'",
    ),
    "noncharacter": ({"prompt": "q", "chosen": "a\ufdd0", "rejected": "b"}, "special_text", "U+FDD0"),
    "surrogate": ({"prompt": "q\ud800", "chosen": "a", "rejected": "b"}, "type", "surrogate"),
    "tools": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "tools": "{"}, "type", "isn't JSON",
    ),
    "margin below 0": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": -1}, "type",
        "margin is -1, expected a number from 0 to 1e+06",
    ),
    "margin of text": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "1"}, "type", "margin is '1'",
    ),
    "margin not a number": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "type", "nan",
    ),
    "margin true": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": True}, "type", "margin is True",
    ),
    "tie of text": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "tie": "no"}, "type",
        "tie is text, expected true or false",
    ),
    "weight 0": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 0}, "type", "weight is 0",
    ),
    "annotator": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "annotator": ["x"]}, "type",
        "annotator is a list",
    ),
    "ranks and scores": (
        {"prompt": "q", "answers": ["a", "b"], "ranks": [1, 2], "scores": [1, 2]}, "format",
        "has both 'ranks' and 'scores'",
    ),
    "prompt and messages": (
        {"prompt": "q", "messages": [user("q")], "answers": ["a", "b"], "ranks": [1, 2]}, "format",
        "has both 'prompt' and 'messages'",
    ),
    "answers of text": (
        {"prompt": "q", "answers": "ab", "ranks": [1, 2]}, "type", "column 'answers' holds text",
    ),
    "one answer to rank": (
        {"prompt": "q", "answers": ["a"], "ranks": [1]}, "format", "1 answers and 1 ranks",
    ),
    "too many answers": (
        {"prompt": "q", "answers": ["a"] * 65, "ranks": [1] * 65}, "format", "from 2 to 64",
    ),
    "fewer ranks": (
        {"prompt": "q", "answers": ["a", "b", "c"], "ranks": [1, 2]}, "format",
        "3 answers and 2 ranks; expected equally many",
    ),
    "rank null": (
        {"prompt": "q", "answers": ["a", "b"], "ranks": [1, None]}, "type",
        "ranks, answer 2 is None, expected a number",
    ),
    "score infinite": (
        {"prompt": "q", "answers": ["a", "b"], "scores": [float("inf"), 1]}, "type",
        "scores, answer 1 is inf",
    ),
    "bad answer among several": (
        {"prompt": "q", "answers": ["a", "b", [user("c")]], "ranks": [1, 2, 3]}, "no_assistant",
        "prompt and answer 3: none of 2 messages is the assistant's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(name: str) -> None:
    record, cause, why = BAD[name]
    found = read_comparison(record)
    assert isinstance(found, Problem), found
    assert found.cause == cause and cause in CAUSES
    assert why in found.why


def test_a_format_that_was_asked_for() -> None:
    text = {"chosen": "a", "rejected": "b"}
    found = read_comparison(text, "pairs")
    assert isinstance(found, Problem)
    assert (found.cause, "data.format=hh" in found.why) == ("format", True)
    found = read_comparison(SIMPLE["text"], "rankings")
    assert isinstance(found, Problem)
    assert "expected the format 'rankings': prompt, answers, ranks or" in found.why
    assert read({**SIMPLE["hh"], "prompt": "ignored"}, "hh").first_user == "Hi?"
    with pytest.raises(DataError, match="isn't a format of preferences"):
        read_comparison(text, "nonsense")


@pytest.mark.parametrize("name", SIMPLE)
def test_a_system_column_stands_beside_every_form(name: str) -> None:
    found = read({**SIMPLE[name], "system": "Be short."})
    prompt = "system: Be short.\nuser: Hi?"
    assert spelled(found) == [(prompt, "assistant: Yo"), (prompt, "assistant: No")]
    assert found.unused == ()
    assert read({**SIMPLE[name], "system": " "}).prompt_key == read(SIMPLE["text"]).prompt_key


def test_a_system_column_and_a_system_message() -> None:
    system = {"role": "system", "content": "Be short."}
    record = {"prompt": [system, user("Hi?")], "chosen": "Yo", "rejected": "No"}
    assert spelled(read({**record, "system": "Be short."})) == spelled(read(record))
    found = read_comparison({**record, "system": "Be long."})
    assert isinstance(found, Problem) and "both the system's" in found.why
    whole = [system, user("Hi?")]
    implicit = {
        "prompt": "Hi?", "system": "Be short.",
        "chosen": [*whole, assistant("Yo")], "rejected": [*whole, assistant("No")],
    }  # fmt: skip
    assert spelled(read(implicit)) == spelled(read(record))


def test_a_history_is_part_of_the_prompt() -> None:
    found = read({**SIMPLE["text"], "history": [["a", "b"]]})
    prompt = "user: a\nassistant: b\nuser: Hi?"
    assert spelled(found) == [(prompt, "assistant: Yo"), (prompt, "assistant: No")]
    for name in ("messages", "implicit prompt", "hh"):
        refused = read_comparison({**SIMPLE[name], "history": [["a", "b"]]})
        assert isinstance(refused, Problem) and refused.cause == "unread"


def test_thinking_and_turns_left_out() -> None:
    thought = {**assistant("Yo"), "thinking": "Hm."}
    found = read({"prompt": "Hi?", "chosen": [thought], "rejected": [assistant("No")]})
    assert found.answers[0].messages[-1] == {**assistant("Yo"), "reasoning_content": "Hm."}
    left_out = [assistant("Yo") | {"train": False}]
    refused = read_comparison({"prompt": "Hi?", "chosen": left_out, "rejected": "No"})
    assert isinstance(refused, Problem) and refused.cause == "no_assistant"


def test_strengths_are_margins_and_ties() -> None:
    record = {"prompt": "q", "response_1": "a", "response_2": "b"}
    assert read({**record, "preference_strength": -2}).pairs == (Pair(0, 1, 2.0),)
    assert read({**record, "preference_strength": 1}).pairs == (Pair(1, 0, 1.0),)
    assert read({**record, "preference_strength": 0}).ties == ((0, 1),)


def test_what_nobody_reads_is_told_or_refused() -> None:
    record = {**SIMPLE["text"], "id": 1, "score_chosen": 2.0, "question": "Hi?", "colour": "red"}
    assert read(record).unused == ("column 'colour'",)
    whole = {**SIMPLE["implicit prompt"], "messages": [user("Ho?")]}
    assert read(whole).unused == ("column 'messages'",)
    joined = read({"context": "C", "question": "q", "chosen": "a", "rejected": "b"})
    assert spelled(joined)[0] == ("user: C\n\nq", "assistant: a")
    inside = {**SIMPLE["messages"], "chosen": [assistant("Yo") | {"mood": 1}]}
    assert read(inside).unused == ("message key 'mood'",)
    for key, value in (("images", ["a.png"]), ("enable_thinking", True), ("sample_weight", 2)):
        found = read_comparison({**SIMPLE["text"], key: value})
        assert isinstance(found, Problem) and found.cause == "unread"
    unpaired = read_comparison({"prompt": "q", "completion": "a", "label": True})
    assert isinstance(unpaired, Problem) and "unpaired feedback" in unpaired.why
