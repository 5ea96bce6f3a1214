"""Why a request is not answered, in the form in which OpenAI's API says it."""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class Refusal(Exception):
    """One sentence for the client, with the status, and the field it is about where there is one."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """OpenAI's error object, whose `type` goes by the status."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """With Retry-After in whole seconds, at least 1, where there is one; with WWW-Authenticate for a 401."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def busy(retry_after: float = 1.0) -> Refusal:
    """429, for whatever there is too much of: connections, bodies, requests or answers. `retry_after` in seconds."""
    return Refusal(429, "The server has as much to do as it takes on; ask again later.", None, "busy", retry_after)
