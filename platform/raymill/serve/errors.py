"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """Refusal or failure of a request, written for the client.

    `param`: name of the field at fault; `code`: OpenAI's name of the error, if it has one;
    `retry_after_s`: seconds after which another try may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers: dict[str, str] = {}
        if retry_after_s is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"

    def body(self) -> dict[str, object]:
        """Return the response's JSON."""
        server = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, server),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """Return the response."""
        return JSONResponse(self.body(), self.status, self.headers)


def unsupported(param: str, why: str = "") -> ApiError:
    """Return the refusal of a field that is unknown, or has a value that isn't supported."""
    what = f"'{param}' isn't supported{f': {why}' if why else ''}"
    return ApiError(400, what, param=param, code="unsupported_parameter")
