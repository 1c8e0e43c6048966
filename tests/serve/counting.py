"""An application for Ray's replicas that has no model: it counts, and tells its version and process."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send


@dataclass(frozen=True)
class Counting:
    """`fails`: the application can't be opened."""

    version: str
    fails: bool = False

    def __call__(self) -> CountingApplication:
        if self.fails:
            raise RuntimeError(f"version {self.version} is damaged")
        return CountingApplication(self.version)


class CountingApplication:
    def __init__(self, version: str) -> None:
        self._version = version
        self._broken = False
        self.open = 0
        self._app = Starlette(
            routes=[
                Route("/v1/completions", self._count, methods=["POST"]),
                Route("/v1/open", self._say),
                Route("/break", self._break, methods=["POST"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def metrics(self) -> bytes:
        return f"# TYPE counting_open gauge\ncounting_open {self.open}\n".encode()

    def check(self) -> None:
        if self._broken:
            raise RuntimeError("it was broken")

    async def _say(self, _: Request) -> Response:
        return JSONResponse({"version": self._version, "process": os.getpid(), "open": self.open})

    async def _break(self, _: Request) -> Response:
        self._broken = True
        return JSONResponse({"process": os.getpid()})

    async def _count(self, request: Request) -> Response:
        asked = json.loads(await request.body())
        if not asked["stream"]:
            await asyncio.sleep(asked["count"] * asked["every_s"])
            return JSONResponse({"version": self._version, "process": os.getpid()})
        return StreamingResponse(
            self._numbers(asked["count"], asked["every_s"]), media_type="text/event-stream"
        )

    async def _numbers(self, count: int, every_s: float) -> AsyncIterator[str]:
        self.open += 1
        try:
            for number in range(count):
                said = {"number": number, "version": self._version, "process": os.getpid()}
                yield f"data: {json.dumps(said)}\n\n"
                await asyncio.sleep(every_s)
            yield "data: [DONE]\n\n"
        finally:
            self.open -= 1
