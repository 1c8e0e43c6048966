"""Bodies of requests, read up to a limit before an application sees them."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Message, Receive


class BodyTooLargeError(Exception):
    """A body is larger than the limit."""


def is_json(headers: Headers) -> bool:
    """Tell whether a body is sent as JSON, the only type that is taken."""
    # A form on another site can't send JSON without the browser asking this server first.
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return content_type == "application/json"


async def read_body(receive: Receive, most: int) -> tuple[bytes, bool]:
    """Read a body; return it, and False with a part of it if the client left.

    Raises:
        BodyTooLargeError: it has more than `most` bytes.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body), False
        body += message.get("body", b"")
        if len(body) > most:
            raise BodyTooLargeError
        if not message.get("more_body", False):
            return bytes(body), True


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return what gives an application a body that was read, and then the client's further messages."""
    whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def replay() -> Message:
        nonlocal whole
        first, whole = whole, None
        return await receive() if first is None else first

    return replay
