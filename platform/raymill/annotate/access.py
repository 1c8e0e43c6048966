"""Access control of the page: a token for every request, size and type limits on every body.

The printed address carries the token once. A cookie then takes its place, so that the token stays neither
in the address bar nor in the `Referer` header of a link.
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

from raymill.annotate.request_body import BodyTooLargeError, is_json, read_body, replayed

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
_UNAUTHORIZED = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Raymill</title>'
    "<p>Open this page by the address that was printed at its start: the address contains an access "
    "token. Every restart prints a new one.</p></html>"
)
_ENTRANCE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Raymill</title>'
    '<link rel="icon" href="/icon.svg"></html>'
)


class AuthMiddleware:
    """ASGI middleware that checks the token, limits request bodies and sets security headers."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token
        # Browsers share cookies among all ports of a host, so each page names its cookie after its token.
        self.cookie = f"raymill-{hashlib.sha256(token.encode()).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        # The page opens no WebSocket.
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send)
        headers = Headers(scope=scope)
        query_tokens = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if scope["path"] == "/" and self._has_token(query_tokens):
            await self._set_cookie()(scope, receive, send)
        elif not self._has_token(self._tokens_in(headers)):
            await _unauthorized(scope["path"])(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            await self._forward_body(scope, receive, send, headers)
        else:
            await self._app(scope, receive, send)

    def _set_cookie(self) -> Response:
        """Set the cookie and send the browser on to the page.

        With a refresh, not a redirect: after a link on another site, a browser withholds a strict cookie
        from the target of a redirect.
        """
        response = HTMLResponse(_ENTRANCE, headers={"refresh": "0; url=/"})
        response.set_cookie(self.cookie, self._token, httponly=True, samesite="strict")
        return response

    def _tokens_in(self, headers: Headers) -> list[str]:
        """Return the tokens of a request's `Authorization` header and cookie."""
        tokens = []
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            tokens.append(token.strip())
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            cookie = None
        return tokens if cookie is None else [*tokens, cookie.value]

    def _has_token(self, tokens: Iterable[str]) -> bool:
        expected = self._token.encode()
        return any(hmac.compare_digest(token.encode(), expected) for token in tokens)

    async def _forward_body(
        self, scope: Scope, receive: Receive, send: Send, headers: Headers
    ) -> None:
        """Read the body of a request up to the limit, then pass the request on with that body."""
        if not is_json(headers):
            await _error(415, "expected content-type application/json")(scope, receive, send)
            return
        try:
            body, complete = await read_body(receive, BODY_BYTES)
        except BodyTooLargeError:
            text = f"the body is larger than {BODY_BYTES >> 10} KiB"
            await _error(413, text)(scope, receive, send)
            return
        if complete:
            await self._app(scope, replayed(body, receive), send)


def _unauthorized(path: str) -> Response:
    if path.startswith("/api/"):
        return _error(
            401, "the access token is missing or wrong; open the address that was printed"
        )
    return HTMLResponse(_UNAUTHORIZED, 401)


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


def _with_headers(send: Send) -> Send:
    security_headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *security_headers]}
        await send(message)

    return send_with_headers
