"""The API: OpenAI's forms, refusals by name, models, limits, keys, CORS, health and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from generate.chat_factory import write_chat_folder
from raymill.annotate.database import DATABASE_NAME, Database
from raymill.serve.app import ServeApplication
from raymill.serve.feedback import Feedback
from raymill.serve.keys import ApiKeys, add_key, read_keys
from serve.conftest import client_of
from serve.feedback_factory import answer, vote
from serve.scripted_engine import ScriptedEngine
from serve.service import TEXT, Service, chat, says, tokens_of, wait_until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def error_of(response: Any, status: int) -> Mapping[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def events(response: Any) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = [part for part in response.text.split("\n\n") if part and not part.startswith(":")]
    assert parts.pop() == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def metric(client: TestClient, name: str, **labels: str) -> float:
    """The value of a metric."""
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(name)


def test_a_chat_is_answered_whole(client: TestClient, service: Service) -> None:
    response = client.post(CHAT, json=chat(seed=7, max_tokens=50))
    assert response.status_code == 200 and response.headers["x-raymill-version"] == "models:/tiny/3"
    body = response.json()
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    prompt, parameters = service.engine.submitted[0]
    assert body["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(tokens_of(TEXT)),
        "total_tokens": len(prompt) + len(tokens_of(TEXT)),
        "prompt_tokens_details": {"cached_tokens": (len(prompt) - 1) // 2},
    }
    assert body["object"] == "chat.completion" and body["model"] == "tiny"
    assert body["version"] == "models:/tiny/3" and body["system_fingerprint"] == "fp_abababababab"
    assert (parameters.seed, parameters.temperature, parameters.top_p) == (7, 1.0, 1.0)
    assert parameters.max_new_tokens == 50 and parameters.top_log_probs is None


def test_a_chat_is_streamed(client: TestClient) -> None:
    asked = chat(stream=True, n=2, stream_options={"include_usage": True})
    *chunks, last = events(client.post(CHAT, json=asked))
    for index in (0, 1):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert choices[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content", "") for c in choices) == TEXT
        assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["stop"]
    assert all(chunk["usage"] is None and chunk["version"] for chunk in chunks)
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 2 * len(tokens_of(TEXT))


def test_answers_have_seeds_of_their_own(client: TestClient, service: Service) -> None:
    client.post(CHAT, json=chat(n=3, seed=-1))
    seeds = [parameters.seed for _, parameters in service.engine.submitted]
    assert len(set(seeds)) == 3 and min(seeds) >= 0
    client.post(CHAT, json=chat(n=3, seed=-1))
    assert [p.seed for _, p in service.engine.submitted[3:]] == seeds
    client.post(CHAT, json=chat())
    client.post(CHAT, json=chat())
    assert service.engine.submitted[-1][1].seed != service.engine.submitted[-2][1].seed


def test_all_sampling_fields_reach_the_engine(client: TestClient, service: Service) -> None:
    fields = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1,
        "presence_penalty": -1.0, "frequency_penalty": 2,
    }  # fmt: skip
    assert client.post(CHAT, json=chat(**fields, logit_bias={"7": -100})).status_code == 200
    parameters = service.engine.submitted[0][1]
    assert {name: getattr(parameters, name) for name in fields} == fields
    assert parameters.logit_bias == {7: -100.0}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["answer", ["nothing", "answer is", "The answer"]])
def test_stop_strings_end_answers(
    client: TestClient, service: Service, stop: Any, stream: bool
) -> None:
    response = client.post(CHAT, json=chat(stop=stop, stream=stream))
    expected = TEXT.partition("answer" if stop == "answer" else "The answer")[0]
    if stream:
        choices = [chunk["choices"][0] for chunk in events(response)]
        assert "".join(one["delta"].get("content", "") for one in choices) == expected
        assert choices[-1]["finish_reason"] == "stop"
    else:
        [choice] = response.json()["choices"]
        assert choice["message"]["content"] == expected and choice["finish_reason"] == "stop"
    wait_until(lambda: not service.engine.busy)


def test_characters_are_never_split(client: TestClient) -> None:
    chunks = events(client.post(CHAT, json=chat(stream=True)))
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert all("\ufffd" not in piece for piece in pieces) and "".join(pieces) == TEXT


def test_log_probabilities_of_a_chat(client: TestClient) -> None:
    body = client.post(CHAT, json=chat(logprobs=True, top_logprobs=2)).json()
    content = body["choices"][0]["logprobs"]["content"]
    # The end of the turn has no text, and isn't among them.
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == TEXT
    assert content[0] == {
        "token": "G", "bytes": [0x47], "logprob": -0.5,
        "top_logprobs": [
            {"token": "G", "bytes": [0x47], "logprob": -0.5}, {"token": "H", "bytes": [0x48], "logprob": -1.5},
        ],
    }  # fmt: skip
    # Half a character has no text of its own.
    assert content[2]["token"] == r"bytes:\xc3" and content[2]["bytes"] == [0xC3]
    streamed = events(client.post(CHAT, json=chat(logprobs=True, top_logprobs=2, stream=True)))
    parts = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    assert [entry for part in parts for entry in part["content"]] == content


def test_log_probabilities_end_with_the_text(client: TestClient) -> None:
    body = client.post(CHAT, json=chat(logprobs=True, stop="answer")).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content if "\\" not in entry["token"]) == "Gre! The "
    assert body["choices"][0]["logprobs"]["refusal"] is None


def test_completions_of_several_prompts(client: TestClient, service: Service) -> None:
    asked = {"model": "tiny", "prompt": ["ab", "c"], "n": 2, "echo": True, "max_tokens": 4}
    body = client.post(COMPLETIONS, json=asked).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == ["abGrü", "abGrü", "cGrü", "cGrü"]
    assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}
    assert body["object"] == "text_completion"
    prompts = [prompt for prompt, _ in service.engine.submitted]
    assert body["usage"]["prompt_tokens"] == len(prompts[0]) + len(prompts[2])
    assert body["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompts_own_log_probabilities(client: TestClient, max_tokens: int, stream: bool) -> None:
    """The form in which evaluations ask for them: token prompts, echo, and one token or none."""
    ids = tokens_of("ü is", end=None)
    asked = {
        "model": "tiny", "prompt": [ids, ids[:2]], "echo": True, "logprobs": 1,
        "max_tokens": max_tokens, "stream": stream,
    }  # fmt: skip
    response = client.post(COMPLETIONS, json=asked)
    if stream:
        first = [c for chunk in events(response) for c in chunk["choices"] if c["index"] == 0]
        text = "".join(one["text"] for one in first)
        logprobs = {
            key: [value for one in first for value in one["logprobs"][key]]
            for key in first[0]["logprobs"]
        }
    else:
        choice = response.json()["choices"][0]
        text, logprobs = choice["text"], choice["logprobs"]
    assert text == "ü is" + "G" * max_tokens
    assert logprobs["tokens"] == [r"bytes:\xc3", r"bytes:\xbc", " ", "i", "s", *["G"] * max_tokens]
    assert logprobs["token_logprobs"] == [None, *[-0.5] * (4 + max_tokens)]
    assert logprobs["top_logprobs"][0] is None and logprobs["top_logprobs"][2] == {" ": -0.5}
    assert logprobs["text_offset"] == [0, 0, 1, 2, 3, *[4] * max_tokens]


def test_unknown_fields_are_refused_by_name(client: TestClient) -> None:
    for field in ("best_of", "suffix", "audio", "functions", "ignore_eos", "temprature"):
        path = COMPLETIONS if field in ("best_of", "suffix") else CHAT
        asked = {"model": "tiny", "prompt": "x"} if path == COMPLETIONS else chat()
        error = error_of(client.post(path, json={**asked, field: 1}), 400)
        assert error["code"] == "unsupported_parameter" and error["param"] == field
        # A field that is null asks for nothing.
        assert client.post(path, json={**asked, field: None}).status_code == 200


BAD = [
    ({"temperature": 3}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": 129}, "n"),
    ({"stop": ""}, "stop.0"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"seed": 2**63}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"302": 1}}, "logit_bias"),
    ({"logit_bias": {"7": 101}}, "logit_bias.7"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"store": True}, "store"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages.0.mood"),
    ({"messages": [{"role": "user", "content": "x", "name": "Ada"}]}, "messages.0.name"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content",
    ),
    ({"min_p": 0.5}, "min_p"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD)
def test_bad_values_are_refused_by_name(client: TestClient, fields: Any, param: str) -> None:
    error = error_of(client.post(CHAT, json={**chat(), **fields}), 400)
    assert error["param"] == param and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"n": 128, "prompt": ["a"] * 3}, "n"),
    ],
)
def test_bad_completions_are_refused_by_name(client: TestClient, fields: Any, param: str) -> None:
    asked = {"model": "tiny", "prompt": "x", **fields}
    assert error_of(client.post(COMPLETIONS, json=asked), 400)["param"] == param


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b'{"a": NaN}', b"\xff", b'{"model": "\\ud800"}']
)
def test_bodies_that_are_not_json_objects(client: TestClient, body: bytes) -> None:
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert error_of(response, 400)["code"] in ("invalid_json", "missing_required_parameter")


def test_missing_fields_are_named(client: TestClient) -> None:
    error = error_of(client.post(CHAT, json={"model": "tiny"}), 400)
    assert error["param"] == "messages" and error["code"] == "missing_required_parameter"


def test_harmless_fields_and_other_forms_are_taken(client: TestClient, service: Service) -> None:
    fields = {
        "user": "ada", "metadata": {"a": "b"}, "store": False, "safety_identifier": "x",
        "prompt_cache_key": "y", "service_tier": "auto", "modalities": ["text"], "max_completion_tokens": 5,
    }  # fmt: skip
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}],
        },
    ]
    assert client.post(CHAT, json={**chat(), **fields, "messages": messages}).status_code == 200
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert client.post(CHAT, json=chat(messages=plain)).status_code == 200
    (one, limited), (other, _) = service.engine.submitted
    assert one == other and limited.max_new_tokens == 5


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(client: TestClient) -> None:
    for path, field, asked in (
        (CHAT, "messages", chat("x" * 300)),
        (COMPLETIONS, "prompt", {"model": "tiny", "prompt": "x" * 300}),
    ):
        error = error_of(client.post(path, json=asked), 400)
        assert error["code"] == "context_length_exceeded" and error["param"] == field
        assert "256 positions" in error["message"] and "3" in error["message"]


def test_an_answer_ends_where_the_positions_end(client: TestClient, service: Service) -> None:
    client.post(COMPLETIONS, json={"model": "tiny", "prompt": "x" * 250, "max_tokens": 50})
    prompt, parameters = service.engine.submitted[0]
    assert parameters.max_new_tokens == 256 - len(prompt)


def test_an_answers_length_has_a_limit(folder: Path) -> None:
    with Service(folder, max_tokens=8) as service:
        client = client_of(service)
        error = error_of(client.post(CHAT, json=chat(max_tokens=9)), 400)
        assert error["param"] == "max_tokens" and "at most 8" in error["message"]
        body = client.post(CHAT, json=chat()).json()
        assert body["usage"]["completion_tokens"] == 8
        assert body["choices"][0]["finish_reason"] == "length"


def test_a_model_without_a_template_only_continues(tmp_path: Path) -> None:
    with Service(write_chat_folder(tmp_path, template=None)) as service:
        client = client_of(service)
        error = error_of(client.post(CHAT, json=chat()), 400)
        assert error["param"] == "messages" and "no chat template" in error["message"]
        assert client.post(COMPLETIONS, json={"model": "tiny", "prompt": "x"}).status_code == 200


def test_models_are_listed_with_their_lineage(folder: Path) -> None:
    with Service(folder, ScriptedEngine(says(TEXT), adapters=["terse"])) as service:
        client = client_of(service)
        listed = client.get("/v1/models").json()
        assert listed["object"] == "list"
        assert [one["id"] for one in listed["data"]] == ["tiny", "tiny:terse"]
        model = client.get("/v1/models/tiny").json()
        assert model == listed["data"][0] and model["object"] == "model" and model["chat"]
        assert model["version"] == "models:/tiny/3" and model["positions"] == 256
        assert model["lineage"][0]["parent"] == "models:/tiny/1"
        assert client.get("/v1/models/tiny:terse").json()["adapter"] == "terse"
        for name in ("other", "tiny:other", "tiny/"):
            error = error_of(client.get(f"/v1/models/{name}"), 404)
            assert error["code"] == "model_not_found" and "tiny:terse" in error["message"]
        assert error_of(client.post(CHAT, json=chat(model="x")), 404)["param"] == "model"
        client.post(CHAT, json=chat(model="tiny:terse"))
        assert [p.adapter for _, p in service.engine.submitted] == ["terse"]
        adapted = client.post(CHAT, json=chat(model="tiny:terse"))
        assert adapted.headers["x-raymill-version"] == "models:/tiny/3:terse"
        plain = client.post(CHAT, json=chat()).json()
        assert adapted.json()["version"] != plain["version"]
        assert adapted.json()["system_fingerprint"] != plain["system_fingerprint"]


def test_texts_and_tokens(client: TestClient, service: Service) -> None:
    body = client.post("/tokenize", json={"model": "tiny", "prompt": "aü"}).json()
    assert body["strings"][-3:] == ["a", r"bytes:\xc3", r"bytes:\xbc"] and body["positions"] == 256
    assert body["count"] == len(body["tokens"])
    back = client.post("/detokenize", json={"model": "tiny", "tokens": body["tokens"]}).json()
    assert back == {"prompt": "<|endoftext|>aü"}
    messages = chat()["messages"]
    asked = client.post("/tokenize", json={"model": "tiny", "messages": messages}).json()
    client.post(CHAT, json=chat())
    assert asked["tokens"] == service.engine.submitted[0][0]
    assert "<|im_start|>" in asked["strings"]
    error_of(client.post("/tokenize", json={"model": "tiny"}), 400)
    error = error_of(client.post("/detokenize", json={"model": "tiny", "tokens": [302]}), 400)
    assert error["param"] == "tokens"


def test_other_paths_and_methods_have_the_same_form(client: TestClient) -> None:
    error_of(client.get("/v1/nothing"), 404)
    error_of(client.get("/v1/models/"), 404)
    response = client.get(CHAT)
    error_of(response, 405)
    assert response.headers["allow"] == "POST"
    error_of(client.post(CHAT, content=b"{}"), 415)
    error_of(client.post(CHAT, content=b"{}", headers={"content-type": "text/plain"}), 415)


def test_bodies_have_a_limit(folder: Path) -> None:
    with Service(folder, body_bytes=2000) as service:
        client = client_of(service)
        assert "2000 bytes" in error_of(client.post(CHAT, json=chat("x" * 2000)), 413)["message"]
        assert client.post(CHAT, json=chat()).status_code == 200


def test_a_bug_is_an_error_of_the_same_form(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_arguments: Any) -> list[int]:
        raise RuntimeError("secret")

    monkeypatch.setattr(service.model.text, "chat_ids", bug)
    error = error_of(client_of(service).post(CHAT, json=chat()), 500)
    assert error["type"] == "server_error" and "secret" not in error["message"]


def test_keys_open_what_is_protected(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key, other = add_key(path, "ada"), add_key(path, "bob")
    assert key not in path.read_text() and key != other
    with Service(folder, keys=read_keys(path)) as service:
        client = client_of(service)
        for given in ({}, {"authorization": "Bearer x"}, {"authorization": f"Basic {key}"}):
            for url in ("/v1/models", "/metrics", "/v1/nothing"):
                response = client.get(url, headers=given)
                assert error_of(response, 401)["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
            error_of(client.post(CHAT, json=chat(), headers=given), 401)
        for right in (key, other):
            given = {"authorization": f"Bearer {right}"}
            assert client.get("/v1/models", headers=given).status_code == 200
            assert client.post(CHAT, json=chat(), headers=given).status_code == 200
        for url in ("/", "/page/chat.js", "/page/settings.json", "/health", "/ready"):
            assert client.get(url).status_code == 200
        # With keys, any name of the host will do.
        elsewhere = TestClient(service.app, base_url="https://chat.example.org")
        assert elsewhere.get("/health").status_code == 200


def test_without_keys_only_names_of_this_machine_are_served(service: Service) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert client_of(service).get("/v1/models", headers={"host": host}).status_code == 200
    for host in ("evil.example:8000", "127.0.0.1.evil.example", ""):
        error_of(client_of(service).get("/v1/models", headers={"host": host}), 403)


def test_other_sites_are_closed_out_unless_named(folder: Path) -> None:
    origin = {"origin": "https://chat.example.org"}
    asks = {
        **origin, "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }  # fmt: skip
    with Service(folder) as service:
        client = client_of(service)
        error_of(client.options(CHAT, headers=asks), 405)
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=origin).headers
    with Service(folder, cors=("https://chat.example.org",)) as service:
        client = client_of(service)
        assert client.options(CHAT, headers=asks).status_code == 200
        response = client.post(CHAT, json=chat(), headers=origin)
        assert response.headers["access-control-allow-origin"] == origin["origin"]
        other = {**asks, "origin": "https://evil.example"}
        assert client.options(CHAT, headers=other).status_code == 400


def test_health_and_readiness_after_a_failure(service: Service, client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json() == {"status": "ready"}
    service.engine.failure = ValueError("out of memory")
    error = error_of(client.post(CHAT, json=chat()), 503)
    assert "out of memory" in error["message"]
    for path in ("/health", "/ready"):
        response = client.get(path)
        assert response.status_code == 503 and response.json()["status"] == "failed"
    assert error_of(client.post(CHAT, json=chat()), 503)["code"] == "engine_failed"
    assert metric(client, "raymill_ready", model="tiny") == 0


def test_metrics_count_tokens_and_responses(client: TestClient, service: Service) -> None:
    for stream in (False, True):
        client.post(CHAT, json=chat(stream=stream))
    client.post(CHAT, json={})
    client.get("/made/up")
    drawn = 2 * len(tokens_of(TEXT))
    assert metric(client, "raymill_drawn_tokens_total", model="tiny") == drawn
    prompt = len(service.engine.submitted[0][0])
    reused = metric(client, "raymill_prompt_tokens_total", source="reused")
    assert reused == 2 * ((prompt - 1) // 2)
    assert metric(client, "raymill_prompt_tokens_total", source="prefilled") == 2 * prompt - reused
    assert metric(client, "raymill_slots") == 4 and metric(client, "raymill_running") == 0
    assert metric(client, "raymill_first_token_seconds_count", model="tiny") == 2
    assert metric(client, "raymill_inter_token_seconds_count", model="tiny") == 2
    assert metric(client, "raymill_responses_total", path=CHAT, code="200") == 2
    assert metric(client, "raymill_responses_total", path=CHAT, code="400") == 1
    assert metric(client, "raymill_responses_total", path="other", code="404") == 1
    assert metric(client, "raymill_request_seconds_count", path=CHAT) == 3


def test_the_page_votes_on_what_answered(folder: Path, tmp_path: Path) -> None:
    with Database(tmp_path / DATABASE_NAME) as database, Service(folder) as service:
        feedback = Feedback(database, service.model.digests.get)
        app = ServeApplication({"tiny": service.model}, service.config, ApiKeys(()), feedback)
        client = client_of(service, app)
        page = client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert client.get("/page/settings.json").json() == {"votes": True, "key": False}
        body = client.post(CHAT, json=chat(seed=3)).json()
        text, version = body["choices"][0]["message"]["content"], body["version"]
        sent = vote("Hello", answer(text, version, seed=3), answer("No.", version))
        assert client.post("/feedback/vote", json=sent).json() == {"recorded": True}
        sent = vote("Hello", answer(text, version), answer("No.", "models:/tiny/2"))
        error_of(client.post("/feedback/vote", json=sent), 409)
    with Service(folder) as service:
        client = client_of(service)
        assert client.get("/page/settings.json").json() == {"votes": False, "key": False}
        error_of(client.post("/feedback/vote", json={}), 404)
