"""Replicas on Ray Serve, with an application that counts: deaths, updates, queues and clients that leave."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from generate.chat_factory import write_chat_folder
from raymill.config import load
from raymill.errors import ClusterError
from raymill.serve.keys import ApiKeys
from raymill.serve.ray_app import ServedVersions, application, exact_versions
from raymill.serve.ray_replicas import ReplicaOptions, deploy, replicas_of, start_proxies, stop
from serve.counting import Counting
from servers import free_port

OPTIONS = ReplicaOptions(
    replicas=1, most=None, cpus=0.1, gpus=0, open_requests=64, target=8, queue=32, longest_s=60, surge=True
)  # fmt: skip
TWO = replace(OPTIONS, replicas=2)


@pytest.fixture(scope="session")
def proxies(ray_session: None) -> Iterator[str]:
    """Ray Serve on this session's Ray; yields its address."""
    port = free_port()
    start_proxies("127.0.0.1", port, 60)
    yield f"http://127.0.0.1:{port}"
    stop()


def put(version: str, options: ReplicaOptions) -> None:
    deploy(replicas_of(Counting(version), options), version)


def body(count: int, every_s: float, stream: bool = True) -> dict[str, Any]:
    return {"count": count, "every_s": every_s, "stream": stream}


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any] | str]:
    async for line in response.content:
        if line.startswith(b"event: "):
            yield line.decode().strip()
        elif line.startswith(b"data: [DONE]"):
            yield "[DONE]"
        elif line.startswith(b"data: "):
            yield json.loads(line[6:])


async def streamed(
    session: aiohttp.ClientSession, asked: dict[str, Any]
) -> list[dict[str, Any] | str]:
    async with session.post("/v1/completions", json=asked) as response:
        assert response.status == 200
        return [event async for event in events(response)]


def talk(address: str, work: Callable[[aiohttp.ClientSession], Awaitable[Any]]) -> Any:
    async def talking() -> Any:
        timeout = aiohttp.ClientTimeout(total=100)
        async with aiohttp.ClientSession(address, timeout=timeout) as session:
            return await work(session)

    return asyncio.run(talking())


def said(address: str) -> dict[str, Any]:
    with urlopen(f"{address}/v1/open", timeout=60) as response:
        return dict(json.load(response))


def test_it_streams_through_ray_and_notices_who_leaves(proxies: str) -> None:
    """The one test of Ray Serve in `make test`."""
    put("one", OPTIONS)

    async def leaving(session: aiohttp.ClientSession) -> None:
        async with session.post("/v1/completions", json=body(1000, 0.05)) as response:
            async for event in events(response):
                assert event["number"] == 0
                return

    whole = talk(proxies, lambda session: streamed(session, body(5, 0)))
    assert [event["number"] for event in whole[:-1]] == [0, 1, 2, 3, 4]
    assert whole[-1] == "[DONE]"
    talk(proxies, leaving)
    left = time.monotonic()
    while said(proxies)["open"]:
        assert time.monotonic() < left + 5
        time.sleep(0.1)


@pytest.mark.slow
def test_a_replica_is_killed_under_load(proxies: str) -> None:
    """No request hangs: streams that it had begun end with an error, all other requests are answered."""
    put("two", TWO)
    processes = {said(proxies)["process"] for _ in range(40)}
    assert len(processes) == 2
    victim = min(processes)

    async def load(session: aiohttp.ClientSession) -> list[Any]:
        streams = [asyncio.create_task(streamed(session, body(60, 0.05))) for _ in range(16)]

        async def whole() -> Any:
            async with session.post("/v1/completions", json=body(60, 0.05, False)) as response:
                return response.status, await response.json()

        wholes = [asyncio.create_task(whole()) for _ in range(8)]
        await asyncio.sleep(1)
        os.kill(victim, signal.SIGKILL)
        later = [asyncio.create_task(streamed(session, body(5, 0.05))) for _ in range(8)]
        return [await asyncio.gather(*tasks) for tasks in (streams, wholes, later)]

    streams, wholes, later = talk(proxies, load)
    broken = [answer for answer in streams if answer[-1] != "[DONE]" or "event: error" in answer]
    assert broken
    assert len(broken) < len(streams)
    for answer in broken:
        assert answer[0]["process"] == victim
        place = answer.index("event: error")
        assert answer[place + 1]["error"]["type"] == "server_error"
    for answer in streams:
        if answer not in broken:
            assert len(answer) == 61
    for status, answer in wholes:
        assert status == 200
        assert answer["process"] != victim
    assert all(answer[-1] == "[DONE]" and len(answer) == 6 for answer in later)


@pytest.mark.slow
def test_a_new_version_rolls_in_and_loses_nothing(proxies: str) -> None:
    put("three", TWO)
    stopping = asyncio.Event()

    async def load(session: aiohttp.ClientSession) -> list[list[Any]]:
        answers: list[list[Any]] = []

        async def again_and_again() -> None:
            while not stopping.is_set():
                answers.append(await streamed(session, body(20, 0.05)))

        asking = [asyncio.create_task(again_and_again()) for _ in range(8)]
        await asyncio.sleep(1)
        await asyncio.to_thread(put, "four", TWO)
        stopping.set()
        await asyncio.gather(*asking)
        return answers

    answers = talk(proxies, load)
    assert {event["version"] for answer in answers for event in answer[:-1]} == {"three", "four"}
    for answer in answers:
        assert len(answer) == 21
        assert answer[-1] == "[DONE]"
        assert len({event["version"] for event in answer[:-1]}) == 1
    assert said(proxies)["version"] == "four"


@pytest.mark.slow
def test_a_version_that_does_not_start_leaves_the_old_one(proxies: str) -> None:
    put("five", OPTIONS)
    with pytest.raises(ClusterError, match=r"no replica of six started: .*version six is damaged"):
        deploy(replicas_of(Counting("six", fails=True), OPTIONS), "six")
    assert said(proxies)["version"] == "five"


@pytest.mark.slow
def test_a_full_queue_answers_503(proxies: str) -> None:
    put("seven", replace(OPTIONS, open_requests=2, queue=2))

    async def load(session: aiohttp.ClientSession) -> list[Any]:
        async def one() -> Any:
            async with session.post("/v1/completions", json=body(10, 0.1, False)) as response:
                return response.status, response.headers.get("retry-after"), await response.json()

        return list(await asyncio.gather(*(one() for _ in range(10))))

    answers = talk(proxies, load)
    refused = [answer for answer in answers if answer[0] != 200]
    assert 4 <= len(refused) < 10
    for status, retry_after, answer in refused:
        assert (status, retry_after) == (503, "2")
        assert answer["error"]["type"] == "server_error"


@pytest.mark.slow
def test_what_fails_its_check_is_replaced(proxies: str) -> None:
    put("eight", OPTIONS)
    request = Request(f"{proxies}/break", method="POST", data=b"{}")
    with urlopen(request, timeout=30) as response:
        broken = json.load(response)["process"]
    deadline = time.monotonic() + 90
    while said(proxies)["process"] == broken:
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.slow
def test_a_model_in_two_replicas_rolls_over_to_another(proxies: str, tmp_path: Path) -> None:
    """Whole answers of the API: all of one version, and the same whichever replica gives them."""
    asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "temperature": 0}

    def deployed(name: str) -> str:
        folder = write_chat_folder(tmp_path / name / "model")
        overrides = [f"model={folder}", "serve.engine=ray", "serve.replicas=2", "serve.slots=4"]
        job = load("serve", [*overrides, "tracking=none", f"storage.root={tmp_path}"])
        served = ServedVersions(job, exact_versions(job), ApiKeys(()))
        deploy(application(served), str(served))
        return str(folder)

    async def answers(session: aiohttp.ClientSession) -> list[Any]:
        async def one() -> Any:
            wanted = {"model": "model", **asked}
            async with session.post("/v1/chat/completions", json=wanted) as response:
                assert response.status == 200, await response.text()
                return response.headers["x-raymill-version"], await response.json()

        return list(await asyncio.gather(*(one() for _ in range(12))))

    async def rolling(session: aiohttp.ClientSession) -> list[Any]:
        task = asyncio.create_task(asyncio.to_thread(deployed, "second"))
        found: list[Any] = []
        while not task.done():
            found += await answers(session)
        return [await task, found]

    first = deployed("first")
    before = talk(proxies, answers)
    second, during = talk(proxies, rolling)
    after = talk(proxies, answers)
    assert {version for version, _ in before} == {first}
    assert {version for version, _ in during} <= {first, second}
    assert {version for version, _ in after} == {second}
    texts = {body["choices"][0]["message"]["content"] for _, body in (*before, *during, *after)}
    assert len(texts) == 1
    assert {body["usage"]["completion_tokens"] for _, body in before} == {12}


@pytest.mark.slow
def test_turns_go_to_one_replica_and_metrics_come_from_all(proxies: str, tmp_path: Path) -> None:
    """Each turn finds the earlier ones in a cache; conversations are spread over both replicas."""
    folder = write_chat_folder(tmp_path / "model", positions=512)
    overrides = [f"model={folder}", "serve.engine=ray", "serve.replicas=2", "serve.slots=4"]
    job = load("serve", [*overrides, "tracking=none", f"storage.root={tmp_path}"])
    served = ServedVersions(job, exact_versions(job), ApiKeys(()))
    deploy(application(served), str(served))

    async def talked(session: aiohttp.ClientSession, number: int) -> list[tuple[int, int]]:
        messages = [{"role": "user", "content": f"Question {number}, which is long enough."}]
        read = []
        for _ in range(4):
            asked = {"model": "model", "messages": messages, "guided_regex": "[a-z]{8}"}
            async with session.post("/v1/chat/completions", json=asked) as response:
                answer = await response.json()
            assert response.status == 200, answer
            usage = answer["usage"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            read.append((usage["prompt_tokens"], cached))
            messages += [answer["choices"][0]["message"], {"role": "user", "content": "And?"}]
            for message in messages:
                message.pop("refusal", None)
        return read

    async def conversations(session: aiohttp.ClientSession) -> list[list[tuple[int, int]]]:
        # One after the other, so that no slot's leftovers give way; more than there are replicas.
        return [await talked(session, number) for number in range(8)]

    for turns in talk(proxies, conversations):
        for (before, _), (_, cached) in itertools.pairwise(turns):
            assert cached >= before - 1
    with urlopen(f"{proxies}/metrics", timeout=60) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    [drawn] = [family for family in families if family.name == "raymill_drawn_tokens"]
    by_replica = {one.labels["replica"]: one.value for one in drawn.samples}
    assert len(by_replica) == 2 and min(by_replica.values()) > 0
    assert sum(by_replica.values()) == 8 * 4 * 9


@pytest.mark.slow
def test_replicas_come_under_load_and_go_after_it(proxies: str) -> None:
    limits = replace(OPTIONS, most=2, target=2, more_after_s=1, fewer_after_s=3)
    put("nine", limits)

    def running() -> int:
        deployments = serve.status().applications["raymill"].deployments
        return int(deployments["replica"].replica_states.get("RUNNING", 0))

    async def load(session: aiohttp.ClientSession) -> tuple[int, int, list[list[Any]]]:
        before = await asyncio.to_thread(running)
        streams = [asyncio.create_task(streamed(session, body(300, 0.1))) for _ in range(8)]
        most = before
        while most < 2 and not all(stream.done() for stream in streams):
            await asyncio.sleep(0.5)
            most = max(most, await asyncio.to_thread(running))
        return before, most, await asyncio.gather(*streams)

    before, most, answers = talk(proxies, load)
    assert (before, most) == (1, 2)
    assert all(answer[-1] == "[DONE]" and len(answer) == 301 for answer in answers)
    deadline = time.monotonic() + 60
    while running() > 1:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert said(proxies)["version"] == "nine"
