"""The application: OpenAI's API, health, metrics and the page, for a set of models.

    app = ServeApplication({model.id: model}, settings, keys)

It holds nothing that a server or Ray Serve has to know but whether it is shutting down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from raymill.errors import DataError
from raymill.schema.serving import ServeConfig
from raymill.serve.chat import chat_prompt, open_chat
from raymill.serve.completions import open_completions
from raymill.serve.errors import ApiError
from raymill.serve.event_stream import error_of
from raymill.serve.feedback import Feedback, feedback_routes
from raymill.serve.gate import Gate
from raymill.serve.keys import ApiKeys
from raymill.serve.metrics import ServiceMetrics
from raymill.serve.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    parse,
)
from raymill.serve.runner import StreamEndedError
from raymill.serve.served_model import ModelTable, ServedModel
from raymill.serve.site import PageSettings, page_routes

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ServeApplication:
    """ASGI application. `check` tells whether it works; `drain` makes it refuse new requests and end the open
    ones in time. Without `feedback`, the page takes no votes. `all_metrics`: what `/metrics` shows where this
    is one of several processes; its own otherwise."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        settings: ServeConfig,
        keys: ApiKeys,
        feedback: Feedback | None = None,
        all_metrics: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self._all_metrics = all_metrics
        self._models, self._table, self._settings = models, ModelTable(models), settings
        self._draining = False
        self._metrics = ServiceMetrics({name: one.runner for name, one in models.items()})
        own = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/models", self._list_models),
            Route("/v1/models/{name:path}", self._show_model),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._show_metrics),
        ]
        votes = [] if feedback is None else feedback_routes(feedback)
        page = page_routes(PageSettings(votes=feedback is not None, key=bool(keys)))
        inner = Starlette(
            routes=[*own, *votes, *page],
            exception_handlers={
                ApiError: _refuse,
                HTTPException: _refuse_http,
                Exception: _fail,
            },
        )
        inner.router.redirect_slashes = False
        paths = [route.path for route in own if "{" not in route.path]
        self._app: ASGIApp = Gate(inner, settings, keys, self._metrics, paths)
        if settings.cors:
            # Outermost, so that pages can read refusals, too.
            self._app = CORSMiddleware(
                self._app,
                allow_origins=settings.cors,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-raymill-version", "x-request-id", "retry-after"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._app(scope, receive, send)

    def check(self) -> None:
        """Raise an error if an engine has failed, which a restart of the process cures.

        Raises:
            EngineFailedError: the error of the first.
        """
        for model in self._models.values():
            if model.runner.failure is not None:
                raise model.runner.failure

    def metrics(self) -> bytes:
        """Return the metrics of this process, in Prometheus' form."""
        return self._metrics.text()

    def drain(self) -> None:
        """Refuse new requests from now on, and end those that are still open after `drain_s`."""
        if not self._draining:
            self._draining = True
            asyncio.get_running_loop().call_later(self._settings.drain_s, self._end_streams)

    def _end_streams(self) -> None:
        for model in self._models.values():
            model.runner.end_all(StreamEndedError("the server is shutting down"))

    async def _chat(self, request: Request) -> Response:
        self._check_open()
        asked = parse(ChatRequest, await request.body())
        exchange = await open_chat(asked, self._table, self._settings.max_tokens)
        return await exchange.respond(request, self._settings, self._metrics, stream=asked.stream)

    async def _complete(self, request: Request) -> Response:
        self._check_open()
        asked = parse(CompletionRequest, await request.body())
        exchange = await open_completions(asked, self._table, self._settings.max_tokens)
        return await exchange.respond(request, self._settings, self._metrics, stream=asked.stream)

    async def _list_models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self._table.descriptions()})

    async def _show_model(self, request: Request) -> Response:
        model, adapter = self._table.find(request.path_params["name"])
        return JSONResponse(model.description(adapter))

    async def _tokenize(self, request: Request) -> Response:
        asked = parse(TokenizeRequest, await request.body())
        model, _ = self._table.find(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise ApiError(400, "give prompt or messages", param="prompt", code="invalid_value")
        if asked.messages is not None:
            ids = await asyncio.to_thread(chat_prompt, model, asked.messages, None)
        else:
            try:
                ids = await asyncio.to_thread(model.text.prompt_ids, asked.prompt or "")
            except DataError as error:
                raise ApiError(400, str(error), param="prompt", code="invalid_value") from error
        tokens = [model.text.spelling(token) for token in ids]
        return JSONResponse(
            {
                "tokens": ids,
                "strings": tokens,
                "count": len(ids),
                "positions": model.runner.positions,
            }
        )

    async def _detokenize(self, request: Request) -> Response:
        asked = parse(DetokenizeRequest, await request.body())
        model, _ = self._table.find(asked.model)
        strange = [token for token in asked.tokens if token >= model.text.vocab_size]
        if strange:
            raise ApiError(
                400,
                f"the model has no token {strange[0]}; they are numbers from 0 to {model.text.vocab_size - 1}",
                param="tokens",
                code="invalid_value",
            )
        return JSONResponse({"prompt": model.text.decode(asked.tokens, special=True)})

    async def _health(self, _request: Request) -> Response:
        """Answer that the process works; it doesn't once an engine failed, which a restart cures."""
        failed = self._failures()
        return JSONResponse(
            {"status": "failed" if failed else "alive", **failed}, 503 if failed else 200
        )

    async def _ready(self, _request: Request) -> Response:
        """Answer whether new requests are taken."""
        failed = self._failures()
        state = "failed" if failed else "draining" if self._draining else "ready"
        return JSONResponse({"status": state, **failed}, 200 if state == "ready" else 503)

    async def _show_metrics(self, _request: Request) -> Response:
        text = self.metrics() if self._all_metrics is None else await self._all_metrics()
        return Response(text, headers={"content-type": _METRICS_TYPE})

    def _failures(self) -> dict[str, str]:
        runners = {name: model.runner for name, model in self._models.items()}
        return {name: str(one.failure) for name, one in runners.items() if one.failure is not None}

    def _check_open(self) -> None:
        if self._draining:
            raise ApiError(
                503, "the server is shutting down", code="shutting_down", retry_after_s=1
            )


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "Starlette calls a handler for its own kind of error"
    return error.response()


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "Starlette calls a handler for its own kind of error"
    told = {
        404: f"there is no {request.url.path} here",
        405: f"{request.url.path} doesn't take {request.method}",
    }
    response = ApiError(error.status_code, told.get(error.status_code, error.detail)).response()
    # Which methods are allowed.
    response.headers.update(error.headers or {})
    return response


async def _fail(_request: Request, error: Exception) -> Response:
    return error_of(error, 0).response()
