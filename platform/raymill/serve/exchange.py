"""One request and its answers: streamed piece by piece, or returned whole, in the form of its endpoint."""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from raymill.schema.serving import ServeConfig
from raymill.serve.answers import ChoiceReader, Piece, Usage
from raymill.serve.event_stream import (
    ClientLeftError,
    EventStream,
    EventWriter,
    error_of,
    unless_client_leaves,
)
from raymill.serve.metrics import ServiceMetrics
from raymill.serve.served_model import ServedModel

T = TypeVar("T")
Json = dict[str, object]
# nginx's code for a client that left; nobody receives it.
CLIENT_LEFT = 499


@dataclass
class Exchange(ABC):
    """Answers to one request; `answers` are readers of open streams, which `respond` closes.

    `include_usage`: a stream ends with the usage.
    """

    model: ServedModel
    adapter: str | None
    name: str
    answers: Sequence[ChoiceReader]
    usage: Usage
    include_usage: bool

    # Kinds of objects, whole and streamed, and the beginning of their ids.
    kind: str = ""
    chunk_kind: str = ""
    prefix: str = ""

    def __post_init__(self) -> None:
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    @abstractmethod
    def choices(self, answer: ChoiceReader, piece: Piece) -> list[Json]:
        """Return what a stream says of a piece."""

    @abstractmethod
    def whole(self, answer: ChoiceReader, pieces: Sequence[Piece]) -> Json:
        """Return an answer of all its pieces."""

    async def respond(
        self, request: Request, settings: ServeConfig, metrics: ServiceMetrics, *, stream: bool
    ) -> Response:
        """Return the response.

        Raises:
            ApiError: the answers can't be completed.
        """
        self._metrics = metrics
        headers = {"x-raymill-version": self.model.version_of(self.adapter)}
        if stream:
            return EventStream(
                self._stream,
                self._close,
                headers,
                limit_s=settings.request_s,
                keep_alive_s=settings.keep_alive_s,
            )
        try:
            async with asyncio.timeout(settings.request_s):
                choices = await unless_client_leaves(request.receive, self._collect_all())
        except ClientLeftError:
            return Response(status_code=CLIENT_LEFT)
        except Exception as error:
            raise error_of(error, settings.request_s) from error
        finally:
            self._close()
        body = self._object(self.kind, choices) | {"usage": self.usage.body()}
        return JSONResponse(body, headers=headers)

    def _close(self) -> None:
        for answer in self.answers:
            answer.stream.close()

    async def _stream(self, writer: EventWriter) -> None:
        await _all([self._pump(answer, writer) for answer in self.answers])
        if self.include_usage:
            usage = self._object(self.chunk_kind, []) | {"usage": self.usage.body()}
            await writer.events(usage)

    async def _pump(self, answer: ChoiceReader, writer: EventWriter) -> None:
        while True:
            piece = await answer.read()
            choices = self.choices(answer, piece)
            if choices:
                await writer.events(*map(self._chunk, choices))
            if piece.finish is not None:
                self._metrics.observe_answer(self.model.id, answer.stream)
                return

    async def _collect_all(self) -> list[Json]:
        return await _all([self._collect(answer) for answer in self.answers])

    async def _collect(self, answer: ChoiceReader) -> Json:
        pieces = [await answer.read()]
        while pieces[-1].finish is None:
            pieces.append(await answer.read())
        self._metrics.observe_answer(self.model.id, answer.stream)
        return self.whole(answer, pieces)

    def _chunk(self, choice: Json) -> Json:
        chunk = self._object(self.chunk_kind, [choice])
        return chunk | {"usage": None} if self.include_usage else chunk

    def _object(self, kind: str, choices: Sequence[Json]) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self.name,
            "system_fingerprint": f"fp_{self.model.fingerprint_of(self.adapter)[:12]}",
            "version": self.model.version_of(self.adapter),
            "choices": list(choices),
        }


async def _all(work: Sequence[Coroutine[object, object, T]]) -> list[T]:
    """Return all results, or raise the first error and cancel the others."""
    if len(work) == 1:
        return [await work[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]
