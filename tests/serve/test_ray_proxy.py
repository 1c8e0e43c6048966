"""Middleware around Ray Serve's proxy, with proxies that behave as Ray's does when a replica dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from raymill.serve import ray_proxy
from raymill.serve.conversation_key import CHAT, conversation_key
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


def chat_body(*contents: object, model: str = "m", system: str | None = None) -> bytes:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return json.dumps({"model": model, "messages": messages}).encode()


def test_all_turns_of_a_conversation_have_one_key() -> None:
    first = conversation_key(CHAT, chat_body("Hi"))
    assert first is not None
    assert conversation_key(CHAT, chat_body("Hi", "Hello!", "And?")) == first
    others = [
        chat_body("Ho"), chat_body("Hi", model="n"), chat_body("Hi", system="Be brief."), chat_body(["Hi"]),
    ]  # fmt: skip
    keys = {conversation_key(CHAT, other) for other in others}
    assert len(keys) == 4 and not keys & {first, None}
    assert conversation_key("/v1/completions", chat_body("Hi")) is None


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"model": "m"}', b'{"model": "m", "messages": [3]}', b"[" * 100_000],
)
def test_what_is_not_a_conversation_has_no_key(body: bytes) -> None:
    assert conversation_key(CHAT, body) is None


@pytest.mark.parametrize("given", [None, b"mine"])
def test_a_chat_names_its_conversation_and_keeps_its_body(given: bytes | None) -> None:
    whole = chat_body("Hi")
    parts = [
        {"type": "http.request", "body": whole[:9], "more_body": True},
        {"type": "http.request", "body": whole[9:], "more_body": False},
    ]
    seen: list[Any] = []

    async def receive() -> dict[str, Any]:
        return parts.pop(0)

    async def send(message: dict[str, Any]) -> None:
        del message

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        read = [await receive(), await receive()]
        seen.append((dict(scope["headers"]), b"".join(message["body"] for message in read)))
        await send(JSON)
        await send(part("{}", more=False))

    headers = [] if given is None else [(b"X-Session-Id", given)]
    scope = {"type": "http", "path": CHAT, "method": "POST", "headers": headers}
    asyncio.run(ReplicaLoss(proxy)(scope, receive, send))
    [(found, body)] = seen
    assert body == whole
    key = conversation_key(CHAT, whole)
    assert key is not None
    assert found == ({b"x-session-id": key.encode()} if given is None else {b"X-Session-Id": given})
