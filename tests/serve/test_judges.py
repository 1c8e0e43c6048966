"""A server's process before outside judges: OpenAI's own client, its specification, and a conformance suite."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from generate.chat_factory import write_chat_folder
from raymill.track.marker import write_marker
from serve.openai_specification import reduced_specification
from serve.server_process import ServerProcess, server_process, wait_for

LINEAGE = {"parent": None, "data_digests": ["d" * 64], "code_commit": "abc"}
MODEL = "tiny"
# Plain letters, so that texts can be compared and encoded again.
LETTERS = {"guided_regex": "[a-z]{24}"}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serving")
    folder = write_chat_folder(root / "runs" / MODEL / "export", positions=512)
    write_marker(folder, LINEAGE)
    return folder


@pytest.fixture(scope="module")
def server(export: Path) -> Iterator[ServerProcess]:
    root = f"storage.root={export.parents[2]}"
    with server_process(f"model={export}", root, "serve.slots=4", "serve.queue=60") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: OpenAI, text: str = "Hello", **fields: Any) -> Any:
    fields = {"max_tokens": 12, "seed": 1, "model": MODEL, **fields}
    return client.chat.completions.create(messages=[{"role": "user", "content": text}], **fields)


def test_one_line_says_where_it_serves(server: ServerProcess) -> None:
    [line] = server.lines
    assert line.startswith(f"serving {MODEL} (/") and line.endswith(f" at {server.address}\n")


def test_the_client_lists_models(client: OpenAI, export: Path) -> None:
    [model] = client.models.list().data
    assert model.id == MODEL and client.models.retrieve(MODEL) == model
    lineage = model.to_dict()["lineage"]
    assert lineage == [{"version": str(export), "data_digests": ["d" * 64], "code_commit": "abc"}]
    with pytest.raises(openai.NotFoundError) as refusal:
        client.models.retrieve("other")
    assert refusal.value.code == "model_not_found"


def test_the_client_streams_what_it_gets_whole(client: OpenAI) -> None:
    whole = ask(client, temperature=0)
    usage = whole.usage
    assert 1 <= usage.completion_tokens <= 12
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    chunks = list(ask(client, temperature=0, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.completion_tokens == usage.completion_tokens
    # The second time, the prompt is in the cache.
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}


def test_the_client_samples_by_seed(client: OpenAI) -> None:
    texts = [ask(client, seed=seed, max_tokens=24).choices[0].message.content for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    several = [choice.message.content for choice in ask(client, n=3, max_tokens=24).choices]
    assert several[0] == texts[0] and len(set(several)) == 3


def test_the_client_gets_log_probabilities(client: OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3, temperature=0)
    entries = answer.choices[0].logprobs.content
    assert len(entries) >= answer.usage.completion_tokens - 1
    for entry in entries:
        values = [one.logprob for one in entry.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        # At temperature 0, the likeliest is drawn.
        assert entry.logprob == values[0] <= 0 and entry.token == entry.top_logprobs[0].token
    raw = b"".join(bytes(entry.bytes) for entry in entries)
    assert raw.decode(errors="replace") == answer.choices[0].message.content


def test_the_client_stops_at_strings(client: OpenAI) -> None:
    text = ask(client, extra_body=LETTERS, max_tokens=40).choices[0].message.content
    assert len(text) == 24 and text.islower()
    stop = text[5:8]
    for stream in (False, True):
        answer = ask(client, extra_body=LETTERS, max_tokens=40, stop=[stop], stream=stream)
        if stream:
            chunks = list(answer)
            found = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            finish = chunks[-1].choices[0].finish_reason
        else:
            found, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert (found, finish) == (text[: text.index(stop)], "stop")


def test_the_client_completes(client: OpenAI) -> None:
    asked: Any = {"prompt": ["ab", "cd"], "echo": True, "logprobs": 2, "max_tokens": 1}
    first = client.completions.create(model=MODEL, temperature=0, **asked)
    # The second time, the prompts are in the cache, which has no log-probabilities.
    answer = client.completions.create(model=MODEL, temperature=0, **asked)
    assert [one.logprobs for one in answer.choices] == [one.logprobs for one in first.choices]
    for choice, prompt in zip(answer.choices, ("ab", "cd"), strict=True):
        found = choice.logprobs
        assert choice.text.startswith(prompt) and found is not None
        assert found.tokens is not None and found.tokens[-3:-1] == list(prompt)
        assert found.token_logprobs is not None and len(found.token_logprobs) == len(found.tokens)
        # A prompt's first token has no probability; all others are of the model's own distribution.
        assert found.token_logprobs[0] is None and max(found.token_logprobs[1:]) < 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 5}, "temperature"),
        ({"n": 0}, "n"),
        ({"extra_body": {"best_of": 2}}, "best_of"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"functions": []}, "functions"),
        ({"tools": []}, "tools"),
    ],
)
def test_the_client_names_bad_input(client: OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, **fields)
    assert refusal.value.param == param and refusal.value.type == "invalid_request_error"


def test_the_client_learns_of_a_long_prompt(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="512 positions") as refusal:
        ask(client, "x" * 600)
    assert refusal.value.code == "context_length_exceeded"


def test_a_client_that_cancels_frees_its_slot(client: OpenAI, server: ServerProcess) -> None:
    stream = ask(client, stream=True, max_tokens=400, extra_body={"guided_regex": "[a-z]{400}"})
    next(iter(stream))
    assert server.metric("raymill_running") == 1
    stream.close()
    wait_for(lambda: server.metric("raymill_running") == 0, 1.0)


def test_the_asynchronous_client(server: ServerProcess) -> None:
    long = {"guided_regex": "[a-z]{400}"}

    async def one(client: AsyncOpenAI, seed: int) -> str:
        text = ""
        stream: Any = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": f"Number {seed}"}],
            max_tokens=40,
            seed=seed,
            stream=True,
            extra_body=LETTERS,
        )
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        return text

    async def cancel(client: AsyncOpenAI) -> None:
        whole: Any = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "x"}],
            max_tokens=400,
            extra_body=long,
        )
        task = asyncio.ensure_future(whole)
        await asyncio.to_thread(wait_for, lambda: server.metric("raymill_running") == 1, 5.0)
        task.cancel()
        await asyncio.to_thread(wait_for, lambda: server.metric("raymill_running") == 0, 1.0)

    async def run() -> list[str]:
        address = f"{server.address}/v1"
        async with AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:
            # More than there are slots.
            texts = await asyncio.gather(*(one(client, seed) for seed in range(10)))
            await cancel(client)
            return list(texts)

    texts = asyncio.run(run())
    assert len(set(texts)) == 10 and all(len(text) == 24 and text.islower() for text in texts)


COMPLY = (
    "chat-basic-response", "chat-system-prompt", "chat-multi-turn", "chat-streaming-response",
    "chat-streaming-usage", "chat-error-handling",
)  # fmt: skip


def test_the_conformance_suite(server: ServerProcess, tmp_path: Path) -> None:
    """All of llm-comply but images and tools, which this model can't take.

    A random model may draw the end of its turn at once, which the suite takes for a failure, so what failed is
    asked again.
    """
    failed, why = set(COMPLY), ""
    for _ in range(3):
        done = judged(
            [
                "llm-comply", "--json", "--format", "openai-chat", "--base-url", f"{server.address}/v1",
                "--model", MODEL, "--api-key", "none", "--filter", ",".join(sorted(failed)),
            ],
            tmp_path,
        )  # fmt: skip
        results = json.loads(done.stdout)["results"]
        assert {one["id"] for one in results} == failed, done.stdout
        failed = {one["id"] for one in results if one["status"] != "passed"}
        why += "".join(json.dumps(one) for one in results if one["id"] in failed)
        if not failed:
            break
    assert not failed, why


@pytest.mark.parametrize(
    ("cases", "least", "most"),
    [(10, 15, 100), pytest.param(600, 1000, None, marks=pytest.mark.slow)],
)
def test_the_specification(
    server: ServerProcess, tmp_path: Path, cases: int, least: int, most: int | None
) -> None:
    """Requests made up from OpenAI's specification: no 500, and responses of its types and schemas."""
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(reduced_specification(MODEL)))
    before = responses(server)
    done = judged(
        [
            "schemathesis", "run", str(path), "--url", f"{server.address}/v1", "--max-examples", str(cases),
            "--phases", "examples,fuzzing", "--seed", "1", "--no-shrink", "--suppress-health-check", "all",
            "--checks", "not_a_server_error,content_type_conformance,response_schema_conformance",
        ],
        tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    found = responses(server) - before
    assert found.total() >= least and (most is None or found.total() <= most), found
    assert found["200"] and set(found) <= {"200", "400", "404", "415", "422"}, found


def responses(server: ServerProcess) -> Counter[str]:
    """Count the server's responses so far by status; those of /metrics are left out."""
    found: Counter[str] = Counter()
    for labels, value in server.values("raymill_responses_total"):
        if labels["path"].startswith("/v1/"):
            found[labels["code"]] += int(value)
    return found


def judged(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a judge's command, which stands next to Python's; it may write into a folder."""
    script = Path(sys.executable).parent / command[0]
    return subprocess.run(
        [sys.executable, str(script), *command[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=800,
    )


def test_a_second_turn_does_not_read_the_first_again(server: ServerProcess) -> None:
    def prefilled() -> float:
        return server.metric("raymill_prompt_tokens_total", source="prefilled")

    def turn(messages: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
        body = {"model": MODEL, "messages": messages, "seed": 3, **LETTERS}
        answer = httpx2.post(f"{server.address}/v1/chat/completions", json=body).json()
        return answer["choices"][0]["message"]["content"], answer["usage"]

    messages = [{"role": "user", "content": "A question of its own, which nobody asked before."}]
    before = prefilled()
    text, first = turn(messages)
    assert prefilled() - before <= first["prompt_tokens"]
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And?"}]
    before = prefilled()
    _, second = turn(messages)
    # Only the end of the answer's turn and the new question are read.
    read = prefilled() - before
    assert read == second["prompt_tokens"] - second["prompt_tokens_details"]["cached_tokens"]
    assert read <= second["prompt_tokens"] - first["prompt_tokens"] - 20


def test_the_process_ends_well_at_a_signal(server: ServerProcess) -> None:
    """The last test of this file: an open stream is finished, and the exit code is 0."""
    with (
        httpx2.Client() as client,
        client.stream(
            "POST",
            f"{server.address}/v1/chat/completions",
            json={
                "model": MODEL,
                "messages": [{"role": "user", "content": "x"}],
                "stream": True,
                "guided_regex": "[a-z]{400}",
            },
        ) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        rest = list(lines)
        assert rest[-2] == "data: [DONE]" and not any("error" in line for line in rest)
    assert server.process.wait(20) == 0
    assert len(server.lines) == 1, server.lines
