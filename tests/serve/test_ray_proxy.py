"""Middleware around Ray Serve's proxy, with proxies that behave as Ray's does when a replica dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from raymill.serve import ray_proxy
from raymill.serve.ray_proxy import ABSENT, ATTEMPTS, LOST, ReplicaLoss

Proxy = Callable[[Any, Any, Any], Awaitable[None]]
SSE = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream")],
}
JSON = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"Content-Type", b"application/json")],
}


def part(text: str, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


def ask(
    proxy: Proxy, path: str = "/v1/completions", method: str = "POST", leaves: bool = False
) -> list[dict[str, Any]]:
    """Send one request through the middleware, in two parts, and return what the client gets."""
    sent: list[dict[str, Any]] = []
    parts = [
        {"type": "http.request", "body": text, "more_body": text == b"a"} for text in (b"a", b"b")
    ]
    if leaves:
        parts.append({"type": "http.disconnect"})

    async def receive() -> dict[str, Any]:
        if not parts:
            await asyncio.Event().wait()
        return parts.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": []}
    asyncio.run(ReplicaLoss(proxy)(scope, receive, send))
    return sent


def proxy_of(*attempts: list[dict[str, Any]]) -> tuple[Proxy, list[bytes]]:
    """A proxy whose replicas send these messages, one list for each attempt; it reads the whole body first."""
    left, bodies = list(attempts), []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        bodies.append(body)
        for message in left.pop(0):
            await send(message)

    return proxy, bodies


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_proxy, "PAUSE_S", 0)


def test_an_answer_passes_as_it_is() -> None:
    whole = [SSE, part("data: 1\n\n"), part("data: [DONE]\n\n", more=False)]
    proxy, bodies = proxy_of(whole)
    assert ask(proxy) == whole
    assert bodies == [b"ab"]


def test_a_request_that_has_not_begun_is_repeated_with_its_whole_body() -> None:
    whole = [JSON, part("{}", more=False)]
    proxy, bodies = proxy_of([], whole)
    assert ask(proxy) == whole
    assert bodies == [b"ab", b"ab"]


def test_it_is_not_repeated_forever() -> None:
    proxy, bodies = proxy_of(*[[]] * ATTEMPTS)
    start, body = ask(proxy)
    assert (start["status"], len(bodies)) == (503, ATTEMPTS)
    assert (b"retry-after", b"2") in start["headers"]
    assert json.loads(body["body"])["error"]["message"] == LOST


def test_what_changes_something_is_not_repeated() -> None:
    proxy, bodies = proxy_of([], [])
    assert ask(proxy, "/feedback/vote")[0]["status"] == 503
    assert len(bodies) == 1


def test_a_stream_that_has_begun_ends_with_an_error_event() -> None:
    proxy, bodies = proxy_of([SSE, part("data: 1\n\n")])
    *whole, last = ask(proxy)
    assert whole == [SSE, part("data: 1\n\n")]
    assert not last.get("more_body")
    event, data, *_ = last["body"].decode().split("\n")
    assert event == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "server_error"
    assert len(bodies) == 1


def test_another_answer_that_has_begun_stays_cut() -> None:
    cut = [JSON, part('{"choices"')]
    assert ask(proxy_of(cut)[0]) == cut


def test_nobody_is_answered_who_has_left() -> None:
    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    assert ask(proxy, leaves=True) == []


def test_the_proxys_refusals_have_the_form_of_the_apis_errors() -> None:
    full = {
        "type": "http.response.start",
        "status": 503,
        "headers": [(b"content-type", b"text/plain; charset=utf-8"), (b"retry-after", b"7")],
    }
    proxy, bodies = proxy_of([full, part("too many requests", more=False)])
    start, body = ask(proxy)
    assert (start["status"], len(bodies)) == (503, 1)
    assert (b"retry-after", b"7") in start["headers"]
    assert (b"content-type", b"application/json") in start["headers"]
    assert json.loads(body["body"])["error"]["message"] == "too many requests"


def test_without_an_application_nothing_is_served_yet() -> None:
    missing = {
        "type": "http.response.start",
        "status": 404,
        "headers": [(b"content-type", b"text/plain")],
    }
    start, body = ask(proxy_of([missing, part("Path '/v1' not found.", more=False)])[0])
    assert start["status"] == 503
    assert json.loads(body["body"])["error"]["message"] == ABSENT


def test_rays_own_pages_are_left_alone() -> None:
    refused = [
        {
            "type": "http.response.start",
            "status": 503,
            "headers": [(b"content-type", b"text/plain")],
        },
        part("unhealthy", more=False),
    ]
    assert ask(proxy_of(refused)[0], "/-/healthz", "GET") == refused
