"""Every form gives the same prompt, and everything else a reason."""

from __future__ import annotations

import json
import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymill.data.prompts.kind import PromptParser
from raymill.data.prompts.prompt import CAUSES, EXTRA_BYTES, Problem, Prompt, read_prompt
from raymill.data.sources.format import Bad
from raymill.data.sources.inputs import InputRange

SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "Why?"}
REPLY = {"role": "assistant", "content": "Because."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": {}}]}
TOOL = {"role": "tool", "content": "3"}
TOOLS = [{"type": "function", "function": {"name": "add"}}]
KEYS = (
    "messages", "prompt", "question", "answer", "verifier", "system", "tools", "id", "role",
    "content", "tool_calls", "other",
)  # fmt: skip


def problem(record: Any) -> Problem:
    found = read_prompt(record)
    assert isinstance(found, Problem), found
    assert found.cause in CAUSES
    assert found.why and "\n" not in found.why
    return found


def good(record: Any) -> Prompt:
    found = read_prompt(record)
    assert isinstance(found, Prompt), found
    return found


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Why?"},
        {"question": "Why?"},
        {"prompt": [USER]},
        {"messages": [USER]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]},
        {"messages": [USER | {"name": None}], "prompt": None, "answer": None, "extra": None},
        {"question": "Why?", "system": "", "id": " ", "verifier": "", "tools": []},
    ],
)
def test_every_form_gives_the_same_prompt(record: dict[str, Any]) -> None:
    assert good(record) == Prompt(messages=(USER,))
    assert good(record).first_user == "Why?"
    column = next(name for name in ("messages", "prompt", "question") if record.get(name))
    if column != "question" or "system" not in record:
        assert good(record | {"system": "Be short."}).messages == (SYSTEM, USER)
    assert good(record | {"answer": "Because."}).answer == "Because."


def test_messages_may_end_with_the_reference_answer() -> None:
    found = good({"messages": [SYSTEM, USER, REPLY, USER, REPLY]})
    assert (found.messages, found.answer) == ((SYSTEM, USER, REPLY, USER), "Because.")
    # A column of its own counts before it: worked solutions end with what is compared.
    found = good({"messages": [USER, REPLY], "answer": 42})
    assert (found.messages, found.answer) == ((USER,), "42")
    found = good({"messages": [USER, CALL], "answer": "3"})
    assert (found.messages, found.answer) == ((USER,), "3")
    found = good({"messages": [USER, CALL, TOOL], "tools": json.dumps(TOOLS)})
    assert [message["role"] for message in found.messages] == ["user", "assistant", "tool"]
    assert (found.answer, found.tools) == (None, tuple(TOOLS))


@pytest.mark.parametrize(
    ("number", "text"),
    [(72, "72"), (72.0, "72"), (-0.5, "-0.5"), (0, "0"), (10**30, "1" + "0" * 30)],
)
def test_numbers_become_text(number: float, text: str) -> None:
    assert good({"question": "Why?", "answer": number}).answer == text


def test_what_is_asked_is_the_first_column_and_all_else_is_kept() -> None:
    record = {
        "messages": [USER], "prompt": "Other?", "question": 7, "answer": "x", "verifier": "exact",
        "id": 12, "level": 3, "tests": ["assert f(1) == 2", {"a": None}], "score": 0.5,
    }  # fmt: skip
    found = good(record)
    assert found.messages == (USER,)
    assert (found.verifier, found.id) == ("exact", "12")
    assert found.extra == {
        "prompt": "Other?", "question": 7, "level": 3, "score": 0.5,
        "tests": ["assert f(1) == 2", {"a": None}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("record", "cause", "why"),
    [
        ([], "type", "expected an object, found a list"),
        ({"text": "x"}, "format", r"expected a column messages or prompt or question \(has text"),
        ({"prompt": 3}, "type", "'prompt' holds a number, expected text or a list of messages"),
        ({"messages": "x"}, "type", "'messages' holds text, expected a list of messages"),
        ({"question": [USER]}, "type", "'question' holds a list, expected text"),
        ({"prompt": ["x"]}, "type", "prompt: message 1 is text, expected an object"),
        ({"prompt": []}, "empty", "no messages"),
        ({"prompt": " \n"}, "empty", "message 1: the user's content is empty"),
        ({"prompt": "\ud800"}, "type", "message 1: content: half of a surrogate pair"),
        ({"prompt": "x\ufdd0"}, "special_text", r"U\+FDD0 at character 2"),
        ({"prompt": [USER, REPLY]}, "order", "2: ends with the assistant, expected user or tool"),
        ({"prompt": [SYSTEM]}, "order", "message 1: ends with the system, expected user or tool"),
        ({"prompt": [REPLY, USER]}, "order", "message 1: assistant at the beginning"),
        ({"prompt": [USER, USER]}, "order", "message 2: user after the user"),
        ({"prompt": [USER, TOOL]}, "order", "message 2: tool after the user"),
        ({"messages": [REPLY]}, "order", "message 1: assistant at the beginning"),
        ({"messages": [USER, {"role": "judge", "content": "x"}]}, "role", "the role is 'judge'"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty", "message 2"),
        ({"messages": [USER, CALL]}, "order", "message 2: ends with a tool call"),
        ({"messages": [SYSTEM, USER], "system": "Hm."}, "order", "both the system's"),
        ({"prompt": "x", "system": 1}, "type", "system is a number, expected text"),
        ({"prompt": "x", "answer": True}, "type", "answer is a boolean, expected text or a number"),
        ({"prompt": "x", "answer": ["a"]}, "type", "answer is a list"),
        ({"prompt": "x", "answer": float("nan")}, "type", "no number at all"),
        ({"prompt": "x", "answer": 10**400}, "type", r"beyond 1e\+300"),
        ({"prompt": "x", "answer": " "}, "empty", "the answer is empty; leave it out"),
        ({"prompt": "x", "answer": "\udfff"}, "type", "answer: half of a surrogate pair"),
        ({"prompt": "x", "verifier": ["a"]}, "type", "verifier is a list, expected text"),
        ({"prompt": "x", "id": 1.5}, "type", "id is a number, expected text"),
        ({"prompt": "x", "tools": "{"}, "type", "tools is text that isn't JSON"),
        ({"prompt": "x", "tools": '[{"a": NaN}]'}, "type", "tools: holds nan, which isn't JSON"),
        ({"prompt": "x", "tools": [1]}, "type", "expected a list of objects"),
        ({"prompt": "x", "a": {"b": float("inf")}}, "type", "column 'a': holds inf, which isn't"),
        ({"prompt": "x", "a": ["\ud800"]}, "type", "column 'a': half of a surrogate pair"),
        ({"prompt": "x", "a": object()}, "type", "column 'a': holds object, which isn't JSON"),
        ({"prompt": "x", 3: "a"}, "type", "a key is a number"),
        ({"prompt": "x", "big": "é" * EXTRA_BYTES}, "extra", r"hold 131,\d+ bytes, .*: big"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(record: Any, cause: str, why: str) -> None:
    found = problem(record)
    assert found.cause == cause
    assert re.search(why, found.why), found.why


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(KEYS),
                inner | st.sampled_from(["user", "assistant", "tool", "system"]),
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_no_record_raises(record: Any) -> None:
    found = read_prompt(record)
    if isinstance(found, Prompt):
        assert found.messages[-1]["role"] in ("user", "tool")
        json.dumps([found.messages, found.extra, found.answer], allow_nan=False).encode()
    else:
        assert found.cause in CAUSES


def test_columns_of_a_table_that_json_can_hold() -> None:
    text, number = pa.string(), pa.int64()
    stored = {
        "prompt": pa.list_(pa.struct({"role": text, "content": pa.large_string()})),
        "answer": pa.decimal128(5, 2),  # refused record by record, not left out
        "level": pa.dictionary(pa.int32(), text),
        "scores": pa.list_(pa.float32(), 2),
        "nothing": pa.null(),
        "correct": pa.bool_(),
        "image": pa.struct({"bytes": pa.binary(), "path": text}),  # refused where there is one
        "when": pa.timestamp("us"),
        "counts": pa.map_(text, number),
        "days": pa.list_(pa.date32()),
    }
    reading = PromptParser(group_column=None, fraction=0.1, seed=0)
    piece = InputRange("a", "a", "parquet", "train", 0, 1, 1, 0)
    read = ["prompt", "answer", "level", "scores", "nothing", "correct", "image"]
    assert reading.columns(pa.schema(stored), piece) == read
    del stored["prompt"]
    found = reading.columns(pa.schema(stored), piece)
    assert isinstance(found, Bad) and found.cause == "format"


def test_system_history_and_thinking() -> None:
    asked = [USER, REPLY, {"role": "user", "content": "And?"}]
    record = {"prompt": "And?", "history": [["Why?", "Because."]], "system_prompt": "Be short."}
    assert good(record).messages == (SYSTEM, *asked)
    assert good(record).extra == {}
    found = good({"context": "C", "question": "Why?", "answer": "4"})
    assert (found.messages[0]["content"], found.extra) == ("C\n\nWhy?", {})
    assert problem({"messages": asked, "history": [["a", "b"]]}).cause == "unread"
    found = good({"messages": [USER, {**REPLY, "thinking": "Hm."}, USER], "system": "Be short."})
    assert found.messages[2] == {**REPLY, "reasoning_content": "Hm."}


def test_what_nobody_reads_is_told_or_refused() -> None:
    assert good({"prompt": [{**USER, "mood": 1, "id": 3}]}).unused == ("message key 'mood'",)
    for key, value in (("images", ["a.png"]), ("chat_template_kwargs", {"enable_thinking": True})):
        assert problem({"prompt": "Why?", key: value}).cause == "unread"
    kept = {"weights": [0.5], "loss": 1.5, "train": False}  # for reward functions
    assert good({"prompt": "Why?", **kept}).extra == kept


def test_nulls_of_other_tools_are_left_out() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {}}}}}
    call = {"name": "f", "arguments": {"a": 1, "b": None}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    found = good({"messages": [USER, asked, TOOL], "tools": [{**tool, "strict": None}]})
    assert found.tools == (tool,)
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
