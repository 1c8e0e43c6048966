"""Middleware of Ray Serve's HTTP proxy: repeats requests whose replica died, and names conversations.

The proxy says nothing when a replica dies: a client's stream just ends, which reads like a short answer. Here
a request whose answer hasn't begun goes to another replica, and a stream that has begun ends with an error.
The proxy's own refusals, of a full queue for example, are sent in the form of the API's other errors. All turns
of a conversation get the same value of a header, by which Ray Serve's router sends them to the same replica: it
has the earlier turns in its cache.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from http import HTTPStatus

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raymill.serve.conversation_key import CHAT, conversation_key
from raymill.serve.errors import ApiError

# Variable that Ray Serve's proxies read, and what it must say for them to use this module.
CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "raymill.serve.ray_proxy.middlewares"
# A request that kills each replica it reaches must not kill them all.
ATTEMPTS = 3
PAUSE_S = 0.2
# Paths whose requests change nothing, so that a second one does no harm.
REPEATABLE = ("/v1/", "/tokenize", "/detokenize")
RETRY_AFTER_S = 2
ABSENT = "no model is served here at the moment"
# Name under which Ray Serve's router looks for a session, unless the cluster has another.
SESSION_VARIABLE, SESSION = "RAY_SERVE_SESSION_ID_HEADER_KEY", "x-session-id"
# Larger bodies, and those that take longer to arrive, are passed on without a key.
MOST_READ_BYTES = 4 * 2**20
READ_S = 30.0
LOST = "the replica that answered this request ended; send the request again"


def middlewares() -> list[Middleware]:
    """Return what each of Ray Serve's proxies wraps around its application."""
    return [Middleware(ReplicaLoss)]


class ReplicaLoss:
    """ASGI middleware around a proxy; see the module."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Paths that begin with a dash are Ray Serve's own.
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        body, answer = _Body(receive), _Answer(send)
        if scope["path"] == CHAT:
            scope = await _named(scope, body)
        attempts = ATTEMPTS if _is_repeatable(scope) else 1
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(PAUSE_S)
                body.rewind()
            # The proxy returns without an answer, or with a part of one, where its replica has died.
            await self._app(scope, body.receive, answer.send)
            if answer.begun or body.disconnected:
                break
        if not body.disconnected:
            await answer.finish()


async def _named(scope: Scope, body: _Body) -> Scope:
    """Return the scope of a chat with its conversation's key as its session, unless the client gave one."""
    name = os.environ.get(SESSION_VARIABLE, SESSION).lower().encode()
    # Ray Serve takes both signs, since some proxies exchange them.
    if any(
        key.lower().replace(b"_", b"-") == name.replace(b"_", b"-") for key, _ in scope["headers"]
    ):
        return scope
    with suppress(TimeoutError):
        async with asyncio.timeout(READ_S):
            await body.read_ahead(MOST_READ_BYTES)
    key = conversation_key(scope["path"], body.content)
    if key is None:
        return scope
    return {**scope, "headers": [*scope["headers"], (name, key.encode())]}


def _is_repeatable(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") or scope["path"].startswith(REPEATABLE)


class _Body:
    """Messages of a client, kept so that another attempt can read them again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._read = 0
        self.disconnected = False

    @property
    def content(self) -> bytes:
        """Return what has arrived so far."""
        return b"".join(message.get("body", b"") for message in self._kept)

    def rewind(self) -> None:
        self._read = 0

    async def read_ahead(self, most: int) -> None:
        """Wait for the whole body, or the first `most` bytes of it; `receive` begins with them."""
        size, more = 0, True
        while more and size <= most:
            message = await self._receive()
            self._kept.append(message)
            size += len(message.get("body", b""))
            more = bool(message.get("more_body", False))

    async def receive(self) -> Message:
        if self._read == len(self._kept):
            self._kept.append(await self._receive())
        message = self._kept[self._read]
        if message["type"] == "http.disconnect":
            self.disconnected = True
        else:
            self._read += 1
        return message


class _Answer:
    """Answer on its way to a client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started: Message | None = None
        # Start of an answer by the proxy itself, held back until its text is known.
        self._refusal: Message | None = None
        self._ended = False

    @property
    def begun(self) -> bool:
        return self._started is not None or self._refusal is not None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if _is_refusal(message):
                self._refusal = message
                return
            self._started = message
        elif self._refusal is not None:
            await self._refuse(self._refusal, _text(message))
            return
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def finish(self) -> None:
        """Complete an answer that its replica didn't complete."""
        if self._ended:
            return
        if self._started is None:
            await self._error(HTTPStatus.SERVICE_UNAVAILABLE, LOST, RETRY_AFTER_S)
        elif _header(self._started, b"content-type").startswith(b"text/event-stream"):
            error = _error(HTTPStatus.SERVICE_UNAVAILABLE, LOST)
            event = f"event: error\ndata: {error}\n\ndata: [DONE]\n\n"
            await self._send({"type": "http.response.body", "body": event.encode()})
        # Any other answer that was cut stays cut: the server closes its connection, as clients expect.

    async def _refuse(self, start: Message, text: str) -> None:
        if self._ended:
            return
        if start["status"] == HTTPStatus.NOT_FOUND:
            # The application answers every path, so there is none at the moment.
            await self._error(HTTPStatus.SERVICE_UNAVAILABLE, ABSENT, RETRY_AFTER_S)
            return
        pause = _header(start, b"retry-after")
        await self._error(HTTPStatus(start["status"]), text, int(pause) if pause else None)

    async def _error(self, status: HTTPStatus, text: str, retry_after_s: int | None) -> None:
        self._ended = True
        body = _error(status, text).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if retry_after_s is not None:
            headers.append((b"retry-after", str(retry_after_s).encode()))
        start = {"type": "http.response.start", "status": int(status), "headers": headers}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def _is_refusal(start: Message) -> bool:
    """Return whether an answer is the proxy's own: the API's errors are JSON."""
    return start["status"] >= 400 and _header(start, b"content-type").startswith(b"text/plain")


def _header(start: Message, name: bytes) -> bytes:
    return next((value for key, value in start["headers"] if key.lower() == name), b"")


def _text(message: Message) -> str:
    return bytes(message.get("body", b"")).decode(errors="replace")


def _error(status: HTTPStatus, text: str) -> str:
    return json.dumps(ApiError(status, text).body())
