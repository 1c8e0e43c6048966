"""A server whose answers are written in advance, for tests of the page: streams, delays, errors."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from raymill.annotate.database import DATABASE_NAME, Database
from raymill.serve.feedback import Feedback, feedback_routes
from raymill.serve.site import PageSettings, page_routes
from servers import served_in_thread

VERSIONS = {"assistant": "models:/assistant/3", "base": "models:/base/1"}
DIGESTS = {"models:/assistant/3": "3f" * 32, "models:/base/1": "b1" * 32}
OVERHEAD = 4  # tokens of the template, per message


@dataclass(frozen=True)
class Script:
    """An answer: tokens with a pause after each, and what ends it (an error's message, or a reason)."""

    tokens: list[str]
    pause_s: float = 0.0
    finish: str = "stop"
    error: str | None = None
    thoughts: str | None = None


def say(text: str, pause_s: float = 0.0, **given: Any) -> Script:
    """Write a text word by word."""
    words = text.split(" ")
    return Script([words[0], *(f" {word}" for word in words[1:])], pause_s, **given)


@dataclass
class ScriptedServer:
    """`write` gets a request's body and its number; an integer is the status of a refusal."""

    folder: Path
    write: Callable[[dict[str, Any], int], Script | int]
    positions: int = 4096
    key: str | None = None
    votes: bool = True
    requests: list[dict[str, Any]] = field(default_factory=list)
    open_streams: int = 0
    left: int = 0

    def app(self) -> Starlette:
        self.database = Database(self.folder / DATABASE_NAME)
        feedback = Feedback(self.database, DIGESTS.get)
        return Starlette(
            routes=[
                *page_routes(PageSettings(votes=self.votes, key=self.key is not None)),
                *feedback_routes(feedback),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/tokenize", self._tokenize, methods=["POST"]),
            ]
        )

    async def _models(self, request: Request) -> Response:
        return self._unauthorized(request) or JSONResponse({"object": "list", "data": MODELS})

    async def _tokenize(self, request: Request) -> Response:
        body = await request.json()
        count = count_tokens(body["messages"])
        return JSONResponse({"tokens": [0] * count, "count": count, "positions": self.positions})

    def _unauthorized(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return error(401, "The API key is missing or wrong.")

    async def _complete(self, request: Request) -> Response:
        if refused := self._unauthorized(request):
            return refused
        body = await request.json()
        self.requests.append(body)
        script = self.write(body, len(self.requests) - 1)
        if isinstance(script, int):
            return error(script, "The queue is full.", {"retry-after": "2"})
        version = VERSIONS[body["model"]]
        return StreamingResponse(
            self._stream(body, script, version),
            media_type="text/event-stream",
            headers={"x-raymill-version": version},
        )

    async def _stream(
        self, body: dict[str, Any], script: Script, version: str
    ) -> AsyncIterator[str]:
        self.open_streams += 1
        whole = False
        try:
            yield ": keep-alive\n\n"
            if script.thoughts:
                yield event(version, {"reasoning_content": script.thoughts})
            for at, token in enumerate(script.tokens):
                log_probs = log_probs_of(token, at) if body.get("logprobs") else None
                yield event(version, {"content": token}, log_probs)
                if script.pause_s:
                    await asyncio.sleep(script.pause_s)
            if script.error is not None:
                text = json.dumps({"error": {"message": script.error, "type": "server_error"}})
                yield f"event: error\ndata: {text}\n\n"
            else:
                yield event(version, {}, finish=script.finish)
                prompt = count_tokens(body["messages"])
                usage = {"prompt_tokens": prompt, "completion_tokens": len(script.tokens)}
                yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
                yield "data: [DONE]\n\n"
            whole = True
        finally:
            self.open_streams -= 1
            self.left += not whole

    @contextmanager
    def running(self, port: int = 0) -> Iterator[str]:
        """Serve in a thread; give the address."""
        try:
            with served_in_thread(self.app(), port, timeout_graceful_shutdown=1) as address:
                yield address
        finally:
            self.database.close()


def count_tokens(messages: list[dict[str, str]]) -> int:
    return sum(OVERHEAD + len(message["content"].split()) for message in messages)


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body = {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    }
    return JSONResponse(body, status, headers)


def event(
    version: str, delta: dict[str, str], log_probs: Any = None, finish: str | None = None
) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": log_probs, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'chatcmpl-1', 'version': version, 'choices': [choice]})}\n\n"


def log_probs_of(token: str, at: int) -> dict[str, Any]:
    """Log-probabilities that depend on the place alone: 0.9, 0.45, 0.22, 0.11, and again."""
    probability = 0.9 / 2 ** (at % 4)

    def entry(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "bytes": [*text.encode()], "logprob": math.log(value)}

    others = [entry(f" other{n}", (1 - probability) / 2**n) for n in range(1, 5)]
    drawn = entry(token, probability)
    likeliest = sorted([drawn, *others], key=lambda one: -float(one["logprob"]))
    return {"content": [{**drawn, "top_logprobs": likeliest}]}


def _model(name: str, *stages: dict[str, Any]) -> dict[str, Any]:
    version = VERSIONS[name]
    return {
        "id": name, "object": "model", "created": 0, "owned_by": "raymill", "adapter": None, "chat": True,
        "version": version, "fingerprint": DIGESTS[version], "lineage": list(stages),
    }  # fmt: skip


def _stage(version: str, digit: str, parent: str | None) -> dict[str, Any]:
    stage = {
        "version": version, "checkpoint": "step-00000110", "data_digests": [digit * 64],
        "config_digest": "0c" * 32, "code_commit": "9a5fc957abc214c5f8a6794edb9aa230e479168d",
    }  # fmt: skip
    return stage if parent is None else {**stage, "parent": parent}


MODELS = [
    _model(
        "assistant",
        _stage("models:/assistant/3", "d", "models:/assistant/2"),
        _stage("models:/assistant/2", "e", "models:/assistant/1"),
        _stage("models:/assistant/1", "f", None),
    ),
    _model("base", _stage("models:/base/1", "f", None)),
]
