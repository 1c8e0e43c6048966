"""Streamed responses: server-sent events, an error as an event, and an end when the client leaves.

Form: https://html.spec.whatwg.org/multipage/server-sent-events.html, with OpenAI's `[DONE]` at the end.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from raymill.errors import RaymillError
from raymill.serve.errors import ApiError

T = TypeVar("T")

LOG = logging.getLogger("raymill.serve")
# A client that doesn't read gets this time to take the last event.
_LAST_EVENT_S = 5.0
_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # Proxies such as nginx would collect the events otherwise.
    "x-accel-buffering": "no",
}


class ClientLeftError(Exception):
    """The client closed the connection before the response was complete."""


async def unless_client_leaves(receive: Receive, work: Coroutine[object, object, T]) -> T:
    """Return the result of `work`, whose request was read to its end; cancel it as soon as the client leaves.

    Raises:
        ClientLeftError: the client left.
    """
    working = asyncio.ensure_future(work)
    tasks = (working, asyncio.ensure_future(_left(receive)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        # Cancellation frees slots, so it must have happened when this returns.
        await asyncio.gather(*tasks, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def error_of(error: Exception, limit_s: float) -> ApiError:
    """Return the form in which a client learns of an error; unforeseen ones are logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TimeoutError):
        return ApiError(
            503,
            f"the answer took longer than {limit_s:g} s, the server's limit",
            code="deadline_exceeded",
            retry_after_s=1,
        )
    if isinstance(error, RaymillError):
        return ApiError(503, str(error), code="answer_failed", retry_after_s=1)
    LOG.error("a request failed", exc_info=error)
    return ApiError(
        500, "the server failed at this request; its log says why", code="internal_error"
    )


class EventWriter:
    """Writer of events to one client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.written = 0

    async def events(self, *values: Mapping[str, object]) -> None:
        """Write JSON objects, each as an event, in one piece."""
        await self._write("".join(f"data: {_json(value)}\n\n" for value in values))

    async def error(self, error: ApiError) -> None:
        """Write an error that came after the headers."""
        await self._write(f"event: error\ndata: {_json(error.body())}\n\n")

    async def done(self) -> None:
        """Write the end, without which clients would wait."""
        await self._write("data: [DONE]\n\n", more=False)

    async def keep_alive(self, every_s: float) -> None:
        """Write comments, which clients skip, whenever nothing else was written for `every_s`."""
        while True:
            before = self.written
            await asyncio.sleep(every_s)
            if self.written == before:
                await self._write(": keep-alive\n\n")

    async def _write(self, text: str, more: bool = True) -> None:
        self.written += 1
        # With ensure_ascii=False, half of a surrogate pair could be left; a decoder yields none.
        body = text.encode("utf-8", "replace")
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class EventStream(Response):
    """Response whose events are written by `produce`; `close` is called at the end, whatever happened."""

    def __init__(
        self,
        produce: Callable[[EventWriter], Awaitable[None]],
        close: Callable[[], None],
        headers: Mapping[str, str],
        *,
        limit_s: float,
        keep_alive_s: float,
    ) -> None:
        super().__init__(headers={**_HEADERS, **headers})
        # The length isn't known.
        del self.headers["content-length"]
        self._produce, self._close = produce, close
        self._limit_s, self._keep_alive_s = limit_s, keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write all events, or stop when the client leaves."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await unless_client_leaves(receive, self._write(EventWriter(send)))
        except ClientLeftError:
            return
        finally:
            self._close()

    async def _write(self, writer: EventWriter) -> None:
        keep_alive = asyncio.ensure_future(writer.keep_alive(self._keep_alive_s))
        try:
            async with asyncio.timeout(self._limit_s):
                await self._produce(writer)
                await writer.done()
                return
        # The headers are out, so whatever fails becomes an event.
        except Exception as error:  # noqa: BLE001
            failure = error_of(error, self._limit_s)
        finally:
            keep_alive.cancel()
        # The slot is free already while the client learns of it.
        self._close()
        try:
            async with asyncio.timeout(_LAST_EVENT_S):
                await writer.error(failure)
                await writer.done()
        except TimeoutError:
            LOG.warning("a client didn't read its last event")
