"""Every format gives the same messages, and everything else a reason."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymill.data.messages.conversation import (
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
    "output", "prompt", "completion", "system", "tools", "weight", "history", "conversation", "query",
    "response", "input", "thinking", "reasoning", "train", "loss", "mask", "label", "type", "function_call",
    "human", "other",
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
    joined = good({"instruction": "Add.", "input": "", "context": "1 2", "response": "3"})
    assert joined.messages[0]["content"] == "Add.\n\n1 2"
    both = good({"instruction": "Add.", "input": "1 2", "context": "3 4", "response": "3"})
    assert both.unused == ("column 'context'",)
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
        (messages(SYSTEM), "no_assistant", "is the assistant's to learn"),
        (messages(USER, SYSTEM, REPLY), "order", "message 2: system after the user"),
        (messages(SYSTEM, SYSTEM, USER, REPLY), "order", "message 2"),
        (messages(REPLY), "order", "message 1: assistant at the beginning, expected user"),
        (messages(SYSTEM, REPLY), "order", "message 2"),
        (messages(USER, USER, REPLY), "order", "message 2: user after the user"),
        (messages(USER, REPLY, REPLY), "order", "message 3: assistant after the assistant"),
        (messages(USER, TOOL, REPLY), "order", "message 2: tool after the user"),
        (messages(USER, REPLY, TOOL, USER, REPLY), "order", "message 4: user after the tool"),
        (messages(USER, REPLY, USER), "order", "ends with a user turn that isn't answered"),
        (messages(USER, REPLY, TOOL), "order", "ends with a tool's result that isn't answered"),
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
                inner
                | st.sampled_from(["user", "assistant", "human", "gpt", "tool_call", "text", "[]"]),
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_no_record_raises(record: Any) -> None:
    assert isinstance(read_conversation(record), Conversation | Problem)


SHAPES: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, REPLY]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
    "alpaca": {"instruction": "Why?", "output": "Because."},
    "prompt_completion": {"prompt": "Why?", "completion": "Because."},
    "prompt_completion, lists": {"prompt": [USER], "completion": [REPLY]},
    "question_answer": {"query": "Why?", "response": "Because."},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
def test_a_system_column_stands_beside_every_shape(name: str, column: str) -> None:
    record = SHAPES[name]
    assert good({**record, column: "Be short."}).messages == (SYSTEM, USER, REPLY)
    for empty in ("", " \n", None):
        assert good({**record, column: empty}).messages == (USER, REPLY)
    assert problem({**record, column: 3}).why == f"{column} is a number, expected text"
    other = problem({**record, "system": "Be long.", "system_prompt": "Be short."})
    assert (other.cause, "differ" in other.why) == ("order", True)


def test_a_system_column_and_a_system_message() -> None:
    record = messages(SYSTEM, USER, REPLY, system="Be long.")
    assert "both the system's, expected one" in problem(record).why
    assert good({**record, "system": " Be short. "}).messages == (SYSTEM, USER, REPLY)
    given = good({"prompt": [USER], "completion": [REPLY], "system": "Be short."}).prompt_length
    assert given == 2  # nothing of the prompt is learned, whatever was put before it


@pytest.mark.parametrize("history", [[["Q", "A"]], '[["Q", "A"]]', [
    {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"},
]])  # fmt: skip
def test_a_history_beside_text_becomes_earlier_turns(history: Any) -> None:
    before = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"})
    for name in ("alpaca", "prompt_completion", "question_answer"):
        record = {**SHAPES[name], "history": history}
        found = good({**record, "system": "Be short."})
        assert found.messages == (SYSTEM, *before, USER, REPLY)
        assert (
            found.prompt_length == 0
        )  # earlier answers are learned, as in LLaMA-Factory and ms-swift
    for name in ("messages", "sharegpt", "prompt_completion, lists"):
        assert problem({**SHAPES[name], "history": history}).cause == "unread"
        assert good({**SHAPES[name], "history": []}).messages == (USER, REPLY)


@pytest.mark.parametrize(
    "history", ["Q", 3, {"Q": "A"}, [["Q"]], [["Q", 3]], ["Q", "A"], [["Q", "A"], 3]]
)
def test_a_history_of_another_form_is_refused(history: Any) -> None:
    assert problem({**SHAPES["alpaca"], "history": history}).cause == "type"


@pytest.mark.parametrize("key", ["weight", "loss_weight", "loss_mask", "loss", "train", "training"])
@pytest.mark.parametrize("shape", ["messages", "sharegpt"])
def test_turns_are_left_out(key: str, shape: str) -> None:
    def record(value: Any) -> dict[str, Any]:
        if shape == "messages":
            return messages(USER, {**REPLY, key: value}, USER, REPLY)
        turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]
        return {"conversations": [turns[0], {**turns[1], key: value}, *turns]}

    for no in (0, 0.0, False):
        assert good(record(no)).messages == (USER, {**REPLY, "weight": 0}, USER, REPLY)
    for yes in (1, 1.0, True, None):
        assert good(record(yes)).messages == (USER, REPLY, USER, REPLY)
    for odd in (0.5, -1, 2, "0", "false", [0], float("nan"), 10**400):
        assert f"message 2: {key} is " in problem(record(odd)).why
        assert problem(record(odd)).cause == "type"


def test_masks_and_flags_of_turns() -> None:
    assert good(messages(USER, REPLY | {"mask": True}, USER, REPLY)).messages[1]["weight"] == 0
    assert "weight" not in good(messages(USER, REPLY | {"masked": False})).messages[1]
    agreeing = {"weight": 0, "train": False, "mask": 1}
    assert good(messages(USER, REPLY | agreeing, USER, REPLY)).messages[1]["weight"] == 0
    contradicting = problem(messages(USER, REPLY | {"weight": 0, "train": True}))
    assert "weight and train contradict each other" in contradicting.why
    assert good(messages(USER | {"train": False, "weight": 0}, REPLY)).messages == (USER, REPLY)
    learned = problem(messages(USER | {"train": True}, REPLY))
    assert learned.cause == "unread" and "only the assistant's are" in learned.why
    nothing = problem(messages(USER, REPLY | {"weight": 0}, USER, REPLY | {"loss": False}))
    assert (
        nothing.cause == "no_assistant"
        and "all of the assistant's turns have weight 0, or an equivalent train, loss or mask"
        in nothing.why
    )
    given = {"prompt": [USER, REPLY, USER], "completion": [REPLY | {"weight": 0}]}
    assert problem(given).cause == "no_assistant"


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thinking_has_one_place(key: str) -> None:
    thought = {**REPLY, "reasoning_content": "Hm."}
    assert good(messages(USER, REPLY | {key: "Hm."})).messages == (USER, thought)
    assert good(messages(USER, REPLY | {key: ""})).messages == (USER, REPLY)
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because.", key: "Hm."}]
    assert good({"conversations": turns}).messages == (USER, thought)
    for name in ("alpaca", "prompt_completion", "question_answer"):
        assert good({**SHAPES[name], key: "Hm."}).messages == (USER, thought)
        assert good({**SHAPES[name], key: "off"}).messages == (USER, REPLY)
    assert problem({**SHAPES["messages"], key: "Hm."}).cause == "unread"
    assert "only an assistant thinks" in problem(messages(USER | {key: "Hm."}, REPLY)).why
    assert "is a list, expected text" in problem(messages(USER, REPLY | {key: ["Hm."]})).why
    assert "half of a surrogate" in problem(messages(USER, REPLY | {key: "\ud800"})).why


def test_thinking_in_parts_and_under_several_names() -> None:
    thought = {**REPLY, "reasoning_content": "Hm."}
    text = {"type": "text", "text": "Because."}
    for part in (
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "reasoning", "text": "Hm."},
        {"type": "reasoning", "value": "Hm."},
    ):
        record = messages(USER, REPLY | {"content": [part, text]})
        assert good(record).messages == (USER, thought)
        assert good(record).unused == ()
        assert problem(messages(USER, REPLY | {"content": [text, part]})).cause == "order"
    both = REPLY | {"reasoning_content": "Hm.", "thinking": "Hm."}
    assert good(messages(USER, both)).messages == (USER, thought)
    different = problem(messages(USER, both | {"reasoning": "No."}))
    assert "reasoning_content and reasoning hold different thinking" in different.why
    for key in ("thought", "thinking_content", "reasoning_text"):
        unread = problem(messages(USER, REPLY | {key: "Hm."}))
        assert unread.cause == "unread" and "rename it to 'reasoning_content'" in unread.why


def test_calls_of_tools_as_turns_of_their_own() -> None:
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}
    said = good(messages(USER, REPLY, call, call, TOOL, TOOL, REPLY)).messages
    called = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert said == (USER, {**REPLY, "tool_calls": [called, called]}, TOOL, TOOL, REPLY)
    several = {"from": "function_call", "value": json.dumps([{"name": "f"}, {"name": "f"}])}
    asked = {"from": "human", "value": "Why?"}
    answered = {"from": "observation", "value": "3"}
    record = {"conversations": [asked, several, answered, {"from": "gpt", "value": "Because."}]}
    assert good(record).messages[1]["tool_calls"] == [called, called]
    assert "isn't JSON" in problem(messages(USER, {"role": "tool_call", "content": "f()"})).why
    differing = messages(USER, call | {"loss": False}, call | {"loss": True}, TOOL, REPLY)
    assert "'loss' differs within one turn" in problem(differing).why
    twice = REPLY | {"tool_calls": [{"name": "f"}], "function_call": {"name": "f"}}
    assert "calls tools in 2 ways" in problem(messages(USER, twice)).why


@pytest.mark.parametrize("arguments", [None, "", "  ", "null", "{}", {}])
def test_a_call_without_arguments(arguments: Any) -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "now", "arguments": arguments}]}
    [said] = good(messages(USER, call, TOOL, REPLY)).messages[1]["tool_calls"]
    assert said["function"] == {"name": "now", "arguments": {}}


def _tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def test_nulls_of_other_tools_are_not_learned() -> None:
    """JSON that was written from a table gives each tool, and each call, the keys of all
    (modelscope/ms-swift#10110)."""
    text, size = {"type": "string"}, {"type": "integer", "default": None, "enum": [1, None]}
    where = {"type": "object", "properties": {"x": text}}
    clean = [
        _tool("f", a=text),
        _tool("g", b=size, default=text, at={"type": "array", "items": where}),
    ]
    padded = [
        _tool("f", a={**text, "items": None}, b=None, default=None, at=None),
        _tool("g", a=None, b=size, default=text, at={"type": "array", "items": where}),
    ]
    calls = [
        {"name": "f", "arguments": {"a": None, "b": None}},
        {"name": "g", "arguments": {"a": None, "b": None, "at": [{"x": None, "y": None}]}},
        {"name": "unknown", "arguments": {"a": None}},
    ]
    said = {"role": "assistant", "content": None, "tool_calls": calls}
    record = messages(USER, said, TOOL, TOOL, TOOL, REPLY, tools=padded)
    for given_tools in (padded, json.dumps(padded)):
        found = good({**record, "tools": given_tools})
        assert found.tools == tuple(clean)
        assert [call["function"]["arguments"] for call in found.messages[1]["tool_calls"]] == [
            {"a": None}, {"b": None, "at": [{"x": None}]}, {"a": None},
        ]  # fmt: skip
    assert good({**record, "tools": None}).messages[1]["tool_calls"][0]["function"] == calls[0]


def _called(*ids: str | None) -> dict[str, Any]:
    named = [{} if one is None else {"id": one} for one in ids]
    calls = [{**one, "function": {"name": "f", "arguments": {}}} for one in named]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def _result(to: str | None) -> dict[str, Any]:
    return {"role": "tool", "content": f"of {to}", **({} if to is None else {"tool_call_id": to})}


def test_results_stand_in_the_order_of_their_calls() -> None:
    """Most templates write no ids, so only a result's position identifies it (modelscope/ms-swift#10174)."""
    swapped = messages(USER, _called("a", "b"), _result("b"), _result("a"), REPLY)
    assert good(swapped).messages[2:4] == (_result("a"), _result("b"))
    twice = messages(
        USER, _called("a", "b"), _result("b"), _result("a"), _called("c", "a"), _result("a"), _result("c"),
        REPLY,
    )  # fmt: skip
    assert [m["content"] for m in good(twice).messages if m["role"] == "tool"] == [
        "of a", "of b", "of c", "of a",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("calls", "results"),
    [
        (("a", "b"), ("b",)),
        ((None, None), ("b", "a")),
        (("a", "b"), ("b", None)),
        (("a", "a"), ("a", "a")),
        (("a", "b"), ("b", "c")),
    ],
)
def test_results_that_do_not_answer_each_call_once_stay(calls: Any, results: Any) -> None:
    said = [_result(one) for one in results]
    found = good(messages(USER, _called(*calls), *said, REPLY)).messages
    assert list(found[2:-1]) == said


def test_speakers_and_words_under_two_names() -> None:
    for same in ({"role": "user", "from": "human"}, {"role": "human"}, {"from": "User"}):
        assert good(messages({**same, "content": "Why?", "value": "Why?"}, REPLY)).messages == (
            USER,
            REPLY,
        )
    assert problem(messages({"role": "user", "from": "gpt", "content": "x"}, REPLY)).cause == "role"
    assert problem(messages({"role": "user", "content": "x", "value": "y"}, REPLY)).cause == "type"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (messages(USER, REPLY, images=[{"path": "a.png"}]), "column 'images' isn't empty"),
        (messages(USER, REPLY, video="a.mp4"), "column 'video' isn't empty"),
        (messages(USER | {"images": ["a.png"]}, REPLY), "message 1: 'images' isn't empty"),
        (
            messages(USER, REPLY | {"refusal": "I won't."}),
            "message 2: 'refusal' replaces the assistant's content",
        ),
        (messages(USER, REPLY | {"prefix": True}), "message 2: 'prefix' makes"),
        (messages(USER, REPLY | {"tools": [{"name": "f"}]}), "give it as a column of the record"),
        (messages(USER, REPLY, functions=[{"name": "f"}]), "give it as 'tools'"),
        (messages(USER, REPLY, sample_weight=0.5), "rename it to 'weight'"),
        (messages(USER, REPLY, train=False), "rename it to 'weight'"),
        (messages(USER, REPLY, assistant_masks=[0, 1]), "selects learned tokens"),
        (messages(USER, REPLY, chat_template_kwargs={"enable_thinking": False}), "changes what a"),
        (messages(USER, REPLY, mask=[1]), "column 'mask' is [1]"),
        ({"prompt": "Why?", "completion": "Because.", "label": 0}, "judged bad"),
    ],
)
def test_what_would_change_what_is_learned_is_refused(record: Any, why: str) -> None:
    found = problem(record)
    assert found.cause == "unread"
    assert why in found.why


def test_what_says_nothing_or_the_usual_is_no_matter() -> None:
    empty = {"images": [], "videos": [None], "chat_template_kwargs": {"x": None}, "functions": "",
             "weights": [], "history": [], "audio": {}}  # fmt: skip
    usual = {"sample_weight": 1, "train": True, "mask": "User", "label": True}
    found = good(messages(USER | {"images": []}, REPLY | {"prefix": False}, **empty, **usual))
    assert found.messages == (USER, REPLY)
    assert found.unused == ()


def test_other_keys_are_named_once() -> None:
    part = {"type": "text", "text": "Why?", "emphasis": 3}
    call = {"name": "f", "arguments": {}, "strict": True}
    calling = {"role": "assistant", "content": "", "tool_calls": [call, call], "mood": "good"}
    record = messages(
        {"role": "user", "content": [part, part], "mood": "bad"}, calling, TOOL, REPLY, id="x", note="y",
        extra={"a": 1}, question="Why?Why?", copy=[USER | {"content": "Because."}], nothing={"b": [" "]},
        **{"\ud800" + "x" * 100: 1},
    )  # fmt: skip
    found = good(record)
    assert found.unused[:4] == (
        "message key 'mood'", "content part key 'emphasis'", "tool call key 'strict'", "column 'extra'",
    )  # fmt: skip
    [odd] = found.unused[4:]
    odd.encode()  # names of keys are printed and written, whatever they are made of
    assert len(odd) < 80
    # Reported keys don't make records different.
    assert found == good({**record, "extra": None})
