"""Gate in front of the routes: keys, hosts, sizes, and the number of open requests; it counts responses."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raymill.annotate.request_body import BodyTooLargeError, is_json, read_body, replayed
from raymill.config.serve_checks import LOCAL
from raymill.schema.serving import ServeConfig
from raymill.serve.errors import ApiError
from raymill.serve.keys import ApiKeys
from raymill.serve.metrics import ServiceMetrics

# As hosts are written in addresses.
LOCAL_HOSTS = tuple(f"[{host}]" if ":" in host else host for host in LOCAL)
# All other paths need a key, where there are keys.
_OPEN = ("/", "/health", "/ready")
_PAGE = "/page/"
# A body that isn't complete after this time isn't waited for.
_BODY_S = 30.0


class Gate:
    """ASGI middleware in front of an application.

    `paths`: those that are counted by name, so that made-up ones don't fill the metrics.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeConfig,
        keys: ApiKeys,
        metrics: ServiceMetrics,
        paths: Collection[str],
    ) -> None:
        self._app, self._settings, self._keys, self._metrics = app, settings, keys, metrics
        self._paths = frozenset(paths)
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        # Nothing here is a WebSocket.
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        begun_s, status = time.monotonic(), 0
        request_id = uuid.uuid4().hex

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = (b"x-request-id", request_id.encode())
                message = {**message, "headers": [*message["headers"], own]}
            await send(message)

        self._open += 1
        try:
            await self._pass(scope, receive, send_counted)
        except ApiError as error:
            await error.response()(scope, receive, send_counted)
        finally:
            self._open -= 1
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.observe_response(path, status, time.monotonic() - begun_s)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._check_access(scope["path"], headers)
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        if self._open > self._settings.requests:
            raise ApiError(
                429,
                f"{self._settings.requests} requests are open already; try again later",
                code="too_many_requests",
                retry_after_s=1,
            )
        await self._app(scope, await self._with_body(receive, headers), send)

    def _check_access(self, path: str, headers: Headers) -> None:
        """Refuse a request without a key; where there are no keys, one that was sent under another name.

        A page of another site can give its own name this machine's address (DNS rebinding).
        """
        if not self._keys:
            host = headers.get("host", "")
            if host.rpartition(":")[0] not in LOCAL_HOSTS and host not in LOCAL_HOSTS:
                raise ApiError(
                    403,
                    f"without API keys, only {', '.join(LOCAL_HOSTS)} are served, not {host!r}",
                    code="host_not_allowed",
                )
            return
        if path in _OPEN or path.startswith(_PAGE):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._keys.hold(key.strip()):
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as the header 'authorization: Bearer …'",
                code="invalid_api_key",
            )

    async def _with_body(self, receive: Receive, headers: Headers) -> Receive:
        """Read a body up to the limit; return what replays it."""
        if not is_json(headers):
            raise ApiError(415, "expected content-type application/json")
        most = self._settings.body_bytes
        try:
            async with asyncio.timeout(_BODY_S):
                body, _ = await read_body(receive, most)
        except BodyTooLargeError as error:
            raise ApiError(
                413, f"the body is larger than {most} bytes, the server's limit"
            ) from error
        except TimeoutError as error:
            raise ApiError(408, f"the body wasn't complete after {_BODY_S:g} s") from error
        return replayed(body, receive)
