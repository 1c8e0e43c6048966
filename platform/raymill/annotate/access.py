"""The door of a page: nobody without the token gets in, and what comes in is small and JSON.

The printed address carries the token once; a cookie then takes its place, so that it stays neither in
the address bar nor in a page that links elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 512 * 2**10
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_CLOSED = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Raymill</title>'
    "<p>This page needs the address that was printed when it was started, with its token. "
    "After a restart there is a new one.</p></html>"
)
_ENTERED = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Raymill</title>'
    '<link rel="icon" href="/icon.svg"></html>'
)


class AuthMiddleware:
    """Wraps an application: access by token, limits on what is posted, headers on every answer."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token
        # A host's ports share their cookies: each page has a name of its own.
        self.cookie = f"raymill-{hashlib.sha256(token.encode()).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send)
        headers = Headers(scope=scope)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if scope["path"] == "/" and self._is_any(given):
            await self._enter()(scope, receive, send)
        elif not self._is_any(self._carried(headers)):
            await _closed(scope["path"])(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            await self._posted(scope, receive, send, headers)
        else:
            await self._app(scope, receive, send)

    def _enter(self) -> Response:
        """Hand out the cookie, and lead on to the page.

        By a refresh, not a redirect: a browser that came from another site's link would keep a strict
        cookie back from where it is redirected to.
        """
        entered = HTMLResponse(_ENTERED, headers={"refresh": "0; url=/"})
        entered.set_cookie(self.cookie, self._token, httponly=True, samesite="strict")
        return entered

    def _carried(self, headers: Headers) -> list[str]:
        carried = []
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            carried.append(token.strip())
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            cookie = None
        return carried if cookie is None else [*carried, cookie.value]

    def _is_any(self, given: Iterable[str]) -> bool:
        token = self._token.encode()
        return any(hmac.compare_digest(one.encode(), token) for one in given)

    async def _posted(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a form on another site can't send unasked
            await _refusal(415, "expected content-type application/json")(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > BODY_BYTES:
                text = f"more than {BODY_BYTES >> 10} KiB were posted"
                await _refusal(413, text)(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            first, whole = whole, None
            return await receive() if first is None else first

        await self._app(scope, replay, send)


def _closed(path: str) -> Response:
    if path.startswith("/api/"):
        return _refusal(401, "the token is missing or wrong; open the address that was printed")
    return HTMLResponse(_CLOSED, 401)


def _refusal(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


def _with_headers(send: Send) -> Send:
    known = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *known]}
        await send(message)

    return sent
