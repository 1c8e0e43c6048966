"""Thoughts, tool calls and constraints: split where the template knows them, refused by name elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from generate.chat_factory import END, write_chat_folder
from serve.conftest import client_of
from serve.scripted_engine import ScriptedEngine
from serve.service import TEXT, Service, chat, says
from serve.test_app import CHAT, error_of, events

PLAIN = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"x": %d}}\n</tool_call>'
CALLS = f"I count.\n{CALL % 1}\n{CALL % 2}"


@pytest.fixture(scope="module")
def rich_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_folder(tmp_path_factory.mktemp("rich"), positions=1024)


@pytest.fixture
def rich(rich_folder: Path) -> Iterator[Service]:
    with Service(rich_folder, ScriptedEngine(says(TEXT), positions=1024)) as service:
        yield service


def answering(service: Service, text: str) -> TestClient:
    service.engine._answer = says(text)
    return client_of(service)


def test_thoughts_are_split_from_the_content(rich: Service) -> None:
    client = answering(rich, "<think>\nI wonder.\n</think>\n\nYes.")
    message = client.post(CHAT, json=chat()).json()["choices"][0]["message"]
    assert message["reasoning_content"] == "I wonder." and message["content"] == "Yes."
    deltas = [c["choices"][0]["delta"] for c in events(client.post(CHAT, json=chat(stream=True)))]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "I wonder."
    assert "".join(d.get("content", "") for d in deltas) == "Yes."
    # The thought comes first.
    kinds = [key for delta in deltas for key in delta if key != "role" and delta[key]]
    assert kinds == sorted(kinds, reverse=True)


def test_calls_are_parsed(rich: Service) -> None:
    client = answering(rich, CALLS)
    [choice] = client.post(CHAT, json=chat(tools=[TOOL])).json()["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "I count."
    calls = choice["message"]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"x": 1}, {"x": 2}]
    assert {call["function"]["name"] for call in calls} == {"add"}
    assert len({call["id"] for call in calls}) == 2
    chunks = events(client.post(CHAT, json=chat(tools=[TOOL], stream=True)))
    choices = [chunk["choices"][0] for chunk in chunks]
    streamed = [call for c in choices for call in c["delta"].get("tool_calls", [])]
    assert [call["index"] for call in streamed] == [0, 1]
    assert choices[-1]["finish_reason"] == "tool_calls"
    # Without tools, the same text is content.
    [choice] = client.post(CHAT, json=chat()).json()["choices"]
    assert choice["message"]["content"] == CALLS and choice["finish_reason"] == "stop"


def test_calls_and_their_results_are_read(rich: Service) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "add", "arguments": '{"x": 1}'},
    }
    messages = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "content": "3", "tool_call_id": "call_1", "name": "add"},
    ]
    client = client_of(rich)
    assert client.post(CHAT, json=chat(messages=messages, tools=[TOOL])).status_code == 200
    text = rich.model.text.decode(rich.engine.submitted[0][0], special=True)
    assert '<tool_call>\n{"name": "add", "arguments": {"x": 1}}' in text and "<think>\nHm." in text
    assert '"description": "Adds."' in text and "tool\n3<|im_end|>" in text
    # tool_choice=none leaves the tools out.
    client.post(CHAT, json=chat(tools=[TOOL], tool_choice="none"))
    assert "Adds" not in rich.model.text.decode(rich.engine.submitted[1][0])
    call["function"]["arguments"] = "{"
    error = error_of(client.post(CHAT, json=chat(messages=messages, tools=[TOOL])), 400)
    assert error["param"] == "messages.1.tool_calls.0.function.arguments"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_tools_cannot_do_is_refused_by_name(rich: Service, fields: Any, param: str) -> None:
    assert error_of(client_of(rich).post(CHAT, json=chat(**fields)), 400)["param"] == param


def test_a_template_without_tools_and_thoughts_refuses_them(tmp_path: Path) -> None:
    with Service(write_chat_folder(tmp_path, template=PLAIN)) as service:
        client = client_of(service)
        error = error_of(client.post(CHAT, json=chat(tools=[TOOL])), 400)
        assert error["param"] == "tools" and error["code"] == "unsupported_parameter"
        user = chat()["messages"][0]
        messages: list[Any] = [user, {"role": "tool", "content": "3", "tool_call_id": "x"}]
        error = error_of(client.post(CHAT, json=chat(messages=messages)), 400)
        assert error["param"] == "messages.1"
        messages = [user, {"role": "assistant", "content": "x", "reasoning_content": "y"}, user]
        error = error_of(client.post(CHAT, json=chat(messages=messages)), 400)
        assert error["param"] == "messages.1.reasoning_content"
        assert client.post(CHAT, json=chat()).status_code == 200


SCHEMA = {
    "type": "object",
    "properties": {"x": {"enum": [1, 2]}},
    "required": ["x"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"response_format": {"type": "json_object"}}, '{"any": [1]}'),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA},
                }
            },
            '{"x": 2}',
        ),
        ({"guided_regex": "[a-c]{2}\\d"}, "ab1"),
    ],
)
def test_constraints_reach_the_engine(rich: Service, fields: Any, text: str) -> None:
    client = answering(rich, text)
    body = client.post(CHAT, json=chat(**fields, n=2)).json()
    assert body["choices"][0]["message"]["content"] == text
    one, other = (parameters.constraint for _, parameters in rich.engine.submitted)
    assert one is not other and not one.allowed()[END]
    for token in rich.model.text.prompt_ids(text)[-len(text) :]:
        assert one.allowed()[token]
        one.accept(token)
    assert one.allowed()[END] and not other.allowed()[END]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "json_schema": {"name": "x", "schema": {}}}},
         "response_format.json_schema"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 1}}}},
         "response_format"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
)  # fmt: skip
def test_constraints_that_cannot_be_followed(rich: Service, fields: Any, param: str) -> None:
    assert error_of(client_of(rich).post(CHAT, json=chat(**fields)), 400)["param"] == param


def test_plain_text_needs_no_constraint(rich: Service) -> None:
    client_of(rich).post(CHAT, json=chat(response_format={"type": "text"}))
    assert rich.engine.submitted[0][1].constraint is None
