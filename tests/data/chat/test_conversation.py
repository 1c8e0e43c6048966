"""Every format gives the same messages, and everything else a reason."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymill.data.chat.conversation import (
    CAUSES,
    FORMATS,
    Conversation,
    Problem,
    detect_format,
    read_conversation,
)
from raymill.errors import DataError

USER = {"role": "user", "content": "Why?"}
REPLY = {"role": "assistant", "content": "Because."}
SYSTEM = {"role": "system", "content": "Be short."}
TOOL = {"role": "tool", "content": "3"}
RECORDS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [SYSTEM, USER, REPLY]},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Why?"},
            {"from": "gpt", "value": "Because."},
        ],
        "system": "Be short.",
    },
    "alpaca": {
        "instruction": "Why?",
        "input": "",
        "output": "Because.",
        "system": "Be short.",
    },
    "prompt_completion": {"prompt": [SYSTEM, USER], "completion": [REPLY]},
    "question_answer": {"query": "Why?", "response": "Because.", "system": "Be short."},
}
KEYS = (
    "messages", "conversations", "role", "content", "from", "value", "tool_calls", "instruction",
    "output", "prompt", "completion", "system", "tools", "weight",
)  # fmt: skip


def problem(record: Any, format: str | None = None) -> Problem:
    found = read_conversation(record, format)
    assert isinstance(found, Problem), found
    assert found.cause in CAUSES
    assert found.why and "\n" not in found.why
    return found


def messages(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(items), **more}


def good(record: Any, format: str | None = None) -> Conversation:
    found = read_conversation(record, format)
    assert isinstance(found, Conversation), found
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_messages(name: str) -> None:
    assert detect_format(RECORDS[name]) == name
    for asked in (None, name):
        found = good(RECORDS[name], asked)
        assert found.messages == (SYSTEM, USER, REPLY)
        assert (found.tools, found.weight, found.first_user) == (None, 1.0, "Why?")


def test_forms_within_the_formats() -> None:
    assert good({"prompt": "Why?", "completion": "Because."}).messages == (USER, REPLY)
    joined = good({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert joined.messages[0]["content"] == "Add.\n\n1 2"
    turns = [{"role": "user", "content": "Why?"}, {"from": "bing", "value": "Because."}]
    assert good({"conversations": turns, "system": ""}).messages == (USER, REPLY)
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]
    assert good(messages({"role": "user", "content": parts}, REPLY)).messages == (USER, REPLY)
    # As Parquet gives them: every key there, most of them null.
    nulls = {"name": None, "tool_calls": None, "tool_call_id": None}
    record = messages(USER | nulls, REPLY | nulls, tools=None, weight=None, prompt=None)
    assert good(record).messages == (USER, REPLY)


@pytest.mark.parametrize(
    "call",
    [
        {"name": "add", "arguments": {"a": 1}},
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},
        {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
    ],
)
def test_tool_calls_become_one_form(call: dict[str, Any]) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    for given_tools in (tools, json.dumps(tools)):
        found = good(messages(USER, asked, TOOL, TOOL, REPLY, tools=given_tools))
        assert found.tools == tuple(tools)
        assert found.messages[1] == {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
            ],
        }


@pytest.mark.parametrize(
    ("record", "cause", "why"),
    [
        ([], "type", "expected an object, found a list"),
        ({"text": "x"}, "format", "has text"),
        ({"messages": "x"}, "type", "'messages' holds text, expected a list"),
        ({"messages": ["x"]}, "type", "message 1 is text"),
        ({"messages": []}, "empty", "no messages"),
        (messages(USER), "no_assistant", "1 messages"),
        (messages(SYSTEM), "no_assistant", "nothing to learn"),
        (messages(USER, SYSTEM, REPLY), "order", "message 2: system after the user"),
        (messages(SYSTEM, SYSTEM, USER, REPLY), "order", "message 2"),
        (messages(REPLY), "order", "message 1: assistant at the beginning, expected user"),
        (messages(SYSTEM, REPLY), "order", "message 2"),
        (messages(USER, USER, REPLY), "order", "message 2: user after the user"),
        (messages(USER, REPLY, REPLY), "order", "message 3: assistant after the assistant"),
        (messages(USER, TOOL, REPLY), "order", "message 2: tool after the user"),
        (messages(USER, REPLY, TOOL, USER, REPLY), "order", "message 4: user after the tool"),
        (messages(USER, REPLY, USER), "order", "ends with a user turn that nobody answers"),
        (messages(USER, REPLY, TOOL), "order", "ends with a tool's result that nobody"),
        (messages({"role": "User", "content": "x"}, REPLY), "role", "message 1: the role is 'Us"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "role", "turn 1"),
        (messages(USER, {"role": "assistant", "content": None}), "empty", "message 2"),
        (messages(USER, {"role": "assistant", "content": " \n"}), "empty", "message 2"),
        (messages(USER, {"role": "assistant", "content": 3}), "type", "content is a number"),
        (messages({"role": "user", "content": [{"type": "image"}]}, REPLY), "type", "'image'"),
        (messages(USER | {"tool_calls": [{"name": "f"}]}, REPLY), "role", "only an assistant"),
        (messages(USER, REPLY | {"tool_calls": [{}]}), "type", "tool call 1"),
        (messages(USER, REPLY | {"tool_calls": [{"name": "f", "arguments": "{"}]}), "type", "JSON"),
        (messages(USER, REPLY | {"tool_calls": [{"name": "f", "arguments": "[]"}]}), "type", "a l"),
        (messages(USER, REPLY | {"name": 3}), "type", "name is a number"),
        (messages(USER | {"content": "\ud800"}, REPLY), "type", "message 1: content: half"),
        (messages(USER | {"content": "x\ufdd0"}, REPLY), "special_text", r"U\+FDD0 at character 2"),
        (messages(USER, REPLY, tools=[{"\ufdef": 1}]), "special_text", "tools"),
        (messages(USER, REPLY, tools=[1]), "type", "expected a list of objects"),
        (messages(USER, REPLY, tools=[{"f": object()}]), "type", "isn't JSON"),
        (messages(USER, REPLY, weight=0), "type", "weight is 0"),
        (messages(USER, REPLY, weight=float("nan")), "type", "weight is nan"),
        (messages(USER, REPLY, weight=True), "type", "weight is True"),
        (messages(USER, REPLY, weight="1"), "type", "weight is '1'"),
        (messages(USER, REPLY, weight=10**400), "type", "weight is 1000"),
        ({"instruction": 1, "output": "x"}, "type", "'instruction' holds a number"),
        ({"instruction": "x", "output": ""}, "empty", "message 2"),
        ({"prompt": "x", "completion": [REPLY]}, "type", "prompt is text and completion is a li"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(record: Any, cause: str, why: str) -> None:
    found = problem(record)
    assert found.cause == cause
    assert re.search(why, found.why), found.why


def test_a_format_that_is_asked_for_must_be_there() -> None:
    assert "no column 'conversations' (has messages)" in problem(messages(USER), "sharegpt").why
    with pytest.raises(DataError, match="'chatml' isn't a chat format"):
        read_conversation({}, "chatml")


def test_deep_nesting_is_refused() -> None:
    nested: Any = {}
    for _ in range(100):
        nested = {"a": nested}
    assert "nested deeper than 64" in problem(messages(USER, REPLY, tools=[nested])).why


def test_weights() -> None:
    assert good(messages(USER, REPLY, weight=2)).weight == 2.0


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(KEYS),
                inner | st.sampled_from(["user", "assistant", "human", "gpt"]),
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_no_record_raises(record: Any) -> None:
    assert isinstance(read_conversation(record), Conversation | Problem)
