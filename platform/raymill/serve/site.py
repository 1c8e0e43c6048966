"""Files of the chat page, each served by its name with a strict Content-Security-Policy.

The page talks to the API like any other client, so it needs no session: with API keys, it asks for one. Its
files hold no secrets and need no key.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from raymill.annotate.access import HEADERS
from raymill.annotate.app import MEDIA_TYPES
from raymill.annotate.app import PAGE as RANKING_PAGE

PAGE = Path(__file__).parent / "page"
# Files that the chat page shares with the ranking page.
SHARED = ("base.css", "build.js", "icon.svg")
_HEADERS = {
    **HEADERS,
    # Trusted Types make the browser refuse any text as HTML, whatever a script does.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
}


@dataclass(frozen=True)
class PageSettings:
    """Facts that the page must know before its first request.

    `votes`: whether the server takes feedback; `key`: whether it wants an API key.
    """

    votes: bool
    key: bool


def page_routes(settings: PageSettings) -> list[Route]:
    """Build the routes `/` and `/page/<file>`; the files are read once, so no request reaches another path."""
    files = {path.name: path for path in sorted(PAGE.iterdir()) if path.suffix in MEDIA_TYPES}
    files |= {name: RANKING_PAGE / name for name in SHARED}
    routes = [
        Route(
            "/" if name == "index.html" else f"/page/{name}",
            _static(path.read_bytes(), MEDIA_TYPES[path.suffix]),
        )
        for name, path in files.items()
    ]
    told = json.dumps({"votes": settings.votes, "key": settings.key}).encode()
    return [*routes, Route("/page/settings.json", _static(told, "application/json"))]


def _static(content: bytes, media_type: str) -> Callable[[Request], Response]:
    def respond(_request: Request) -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return respond
