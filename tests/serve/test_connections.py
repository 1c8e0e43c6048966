"""Connections: clients that leave or don't read, long waits, failures behind the headers, limits, shutdown."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from serve.scripted_engine import ScriptedEngine
from serve.service import TEXT, Service, at_address, chat, says, tokens_of, wait_until

CHAT = "/v1/chat/completions"
FOREVER = [*tokens_of("abcdefgh" * 25, end=None)]


def endless(step_s: float = 0.005, slots: int = 4) -> ScriptedEngine:
    """An engine whose answers outlast the test."""
    return ScriptedEngine(lambda *_: FOREVER * 100, step_s=step_s, slots=slots, positions=None)


def send(address: str, body: Any) -> socket.socket:
    """Send a request and return its open connection."""
    url = urlsplit(address)
    assert url.hostname is not None and url.port is not None
    connection = socket.create_connection((url.hostname, url.port), timeout=10)
    content = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: {url.hostname}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def ask(address: str, body: Any, path: str = CHAT) -> tuple[int, dict[str, str], str]:
    """Send a request; return status, headers and the whole body."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    try:
        connection.request(
            "GET" if body is None else "POST", path, None if body is None else json.dumps(body),
            {"content-type": "application/json"},
        )  # fmt: skip
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, headers, response.read().decode()
    finally:
        connection.close()


@contextmanager
def served(folder: Path, engine: ScriptedEngine, **changes: Any) -> Iterator[tuple[Service, str]]:
    with Service(folder, engine, **changes) as service, at_address(service.app) as address:
        yield service, address


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slots_at_once(folder: Path, stream: bool) -> None:
    with served(folder, endless()) as (service, address):
        connection = send(address, chat(stream=stream, n=2))
        wait_until(lambda: service.model.runner.counts.running == 2)
        if stream:
            assert connection.recv(20)
        connection.close()
        wait_until(lambda: service.model.runner.counts.running == 0, timeout_s=1.0)
        assert service.model.runner.open_streams == 0


def test_a_client_that_leaves_the_queue_leaves_it(folder: Path) -> None:
    with served(folder, endless(slots=1), queue=1) as (service, address):
        first = send(address, chat())
        wait_until(lambda: service.model.runner.counts.running == 1)
        second = send(address, chat())
        wait_until(lambda: service.model.runner.counts.waiting == 1)
        second.close()
        wait_until(lambda: service.model.runner.counts.waiting == 0, timeout_s=1.0)
        first.close()


def test_a_full_queue_answers_503_and_many_requests_429(folder: Path) -> None:
    with served(folder, endless(slots=1), queue=1, requests=3) as (service, address):
        open_ones = [send(address, chat(stream=True)) for _ in range(2)]
        wait_until(lambda: service.model.runner.open_streams == 2)
        status, headers, body = ask(address, chat())
        assert status == 503 and json.loads(body)["error"]["code"] == "queue_full"
        assert int(headers["retry-after"]) >= 1
        # A third one that sends its body slowly.
        open_ones.append(_half_sent(address))
        wait_until(lambda: ask(address, chat())[0] == 429)
        status, headers, body = ask(address, chat())
        assert json.loads(body)["error"]["code"] == "too_many_requests" and headers["retry-after"]
        # Those who only look are let in.
        assert ask(address, None, "/health")[0] == 200
        for connection in open_ones:
            connection.close()
        wait_until(lambda: service.model.runner.open_streams == 0)


def _half_sent(address: str) -> socket.socket:
    url = urlsplit(address)
    connection = socket.create_connection((url.hostname, url.port), timeout=10)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: {url.hostname}\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: 1000\r\n\r\n{{".encode())
    return connection


def test_a_slow_reader_does_not_slow_others(folder: Path) -> None:
    long = ScriptedEngine(lambda *_: FOREVER * 20, step_s=0.0, positions=None, slots=8)
    with served(folder, long, write_every_s=0.0) as (service, address):
        slow = send(address, chat(stream=True, logprobs=True, top_logprobs=20))
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        begun_s = time.monotonic()
        status, _, body = ask(address, chat(stream=True))
        took_s = time.monotonic() - begun_s
        assert status == 200 and body.endswith("data: [DONE]\n\n") and '"length"' in body
        assert took_s < 5
        # A client that doesn't read holds no slot.
        wait_until(lambda: service.model.runner.counts.running == 0)
        slow.close()


def test_comments_keep_a_waiting_stream_alive(folder: Path) -> None:
    engine = ScriptedEngine(says(TEXT))
    engine.gate.clear()
    with served(folder, engine, keep_alive_s=0.02) as (_, address):
        threading.Timer(0.1, engine.gate.set).start()
        _, headers, body = ask(address, chat(stream=True))
        assert body.startswith(": keep-alive\n\n: keep-alive\n\n") and body.endswith("[DONE]\n\n")
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-cache"
        assert headers["x-raymill-version"] == "models:/tiny/3" and headers["x-request-id"]


def test_a_failure_behind_the_headers_is_an_event(folder: Path) -> None:
    with served(folder, endless()) as (service, address):
        connection = send(address, chat(stream=True))
        assert connection.recv(20)
        service.engine.failure = ValueError("out of memory")
        rest = b""
        while b"[DONE]" not in rest:
            rest += connection.recv(65536)
        event = rest.decode().partition("event: error\ndata: ")[2].partition("\n\n")[0]
        error = json.loads(event)["error"]
        assert "out of memory" in error["message"] and error["type"] == "server_error"
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_requests_have_a_time_limit(folder: Path, stream: bool) -> None:
    with served(folder, endless(), request_s=0.2) as (service, address):
        status, headers, body = ask(address, chat(stream=stream))
        if stream:
            assert status == 200 and "event: error\ndata: " in body and "deadline_exceeded" in body
        else:
            assert status == 503 and json.loads(body)["error"]["code"] == "deadline_exceeded"
            assert headers["retry-after"]
        assert service.model.runner.open_streams == 0
        wait_until(lambda: not service.engine.busy)


def test_draining_finishes_what_has_begun_in_time(folder: Path) -> None:
    """New requests are refused, a short answer is finished, and one that never ends is ended."""

    def answer(prompt: Any, _parameters: Any) -> list[int]:
        return FOREVER * 100 if len(prompt) > 60 else tokens_of(TEXT)

    engine = ScriptedEngine(answer, step_s=0.01, positions=None)
    with served(folder, engine, drain_s=0.6) as (service, address):
        results: dict[str, Any] = {}

        def keep(name: str, body: Any) -> None:
            results[name] = ask(address, body)

        threads = [
            threading.Thread(target=keep, args=("short", chat("a", stream=True))),
            threading.Thread(target=keep, args=("long", chat("a" * 60, stream=True))),
            threading.Thread(target=keep, args=("whole", chat("a" * 60))),
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: service.model.runner.counts.running == 3)
        # As the server does it at a signal, in its event loop.
        loop = service.model.runner._loop
        assert loop is not None
        loop.call_soon_threadsafe(service.app.drain)
        wait_until(lambda: ask(address, None, "/ready")[0] == 503)
        assert json.loads(ask(address, None, "/ready")[2]) == {"status": "draining"}
        assert ask(address, None, "/health")[0] == 200
        status, headers, body = ask(address, chat())
        assert status == 503 and headers["retry-after"]
        assert json.loads(body)["error"]["code"] == "shutting_down"
        for thread in threads:
            thread.join()
        assert "event: error" not in results["short"][2] and '"stop"' in results["short"][2]
        assert "event: error" in results["long"][2] and "shutting down" in results["long"][2]
        assert results["whole"][0] == 503
