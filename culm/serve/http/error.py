"""Errors in OpenAI's shape: always a message, a type, a parameter and a code."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from culm.config import did_you_mean
from culm.serve import refusal
from culm.serve.http.protocol import NAMES
from culm.serve.http.wire import known_fields

log = logging.getLogger("culm.serve")

KINDS = {
    401: "authentication_error", 403: "permission_error", 429: "rate_limit_error",
    500: "server_error",
}  # fmt: skip
FINAL = ("timeout", "invalid_numbers", "not_read")  # another try would fail as well
CODES = {404: "not_found", 405: "method_not_allowed"}
REFUSALS = {  # status, code
    refusal.ContextTooShort: (400, "context_length_exceeded"),
    refusal.InvalidRequest: (400, "invalid_value"),
    refusal.InvalidForm: (400, "invalid_schema"),
    refusal.FormFailed: (400, "invalid_schema"),
    refusal.Overloaded: (503, "overloaded"),
    refusal.RateLimited: (429, "rate_limit_exceeded"),
    refusal.ShuttingDown: (503, "shutting_down"),
    refusal.EngineStopped: (503, "engine_stopped"),
    refusal.NotReady: (503, "not_ready"),
    refusal.NotRead: (503, "not_read"),
    refusal.NotFinite: (500, "invalid_numbers"),
    refusal.EngineFailed: (500, "internal_error"),
}


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorFields


class ApiError(Exception):
    """An error response. retry: seconds after which another try may succeed."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.code, self.param, self.retry = code, param, retry

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": KINDS.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """The complete response."""
        extra = dict(headers or {})
        if self.retry is not None:
            extra["Retry-After"] = str(self.retry)
        elif self.code in FINAL:
            extra["x-should-retry"] = "false"
        if self.status == 401:
            extra["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, extra)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """An invalid request; retrying cannot help."""
    return ApiError(400, message, code, param)


def of_refusal(error: refusal.Refusal) -> ApiError:
    """The response to a refusal of the service."""
    if isinstance(error, refusal.UnknownModel):
        return ApiError(404, str(error), "model_not_found", "model")
    if isinstance(error, refusal.TooSlow):
        code = "queue_timeout" if error.waiting else "timeout"
        return ApiError(503, str(error), code, retry=error.retry_seconds)
    message, field = str(error), None
    if isinstance(error, refusal.InvalidRequest) and error.field:
        field = NAMES.get(error.field, error.field)
        message = message.replace(f"{error.field}:", f"{field}:", 1)
    status, code = REFUSALS[type(error)]
    return ApiError(status, message, code, field, error.retry_seconds)


def install(app: FastAPI) -> None:
    """Give every failure of the application this shape."""

    @app.exception_handler(ApiError)
    async def known(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(refusal.Refusal)
    async def refused(request: Request, error: refusal.Refusal) -> JSONResponse:
        return of_refusal(error).response()

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
        return _of_validation(error).response()

    @app.exception_handler(HTTPException)
    async def routed(request: Request, error: HTTPException) -> JSONResponse:
        # Not request.url, which cannot be read with every header `Host`.
        message = f"{request.method} {request.scope['path']}: {error.detail}"
        code = CODES.get(error.status_code, "invalid_request")
        return ApiError(error.status_code, message, code).response(error.headers)


def of_failure(method: str, path: str, error: Exception) -> ApiError:
    """The response to an error of the server, which is logged."""
    log.error("%s %s failed", method, path, exc_info=error)
    return ApiError(500, "The server failed; its log says why.", "internal_error")


def _of_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return invalid("The body is not valid JSON.", code="invalid_json")
    # Unions add the names of their branches to the path; clients know fields and indices only.
    *place, last = first["loc"][1:] or [""]
    path = [p for p in place if isinstance(p, int) or p in known_fields()]
    known = isinstance(last, int) or last in known_fields()
    path += [last] if known and first["type"] != "extra_forbidden" else []
    param = ".".join(map(str, path)) or None
    text = first["msg"].removeprefix("Value error, ")
    if path[-1:] == ["content"]:
        text = "give a text, or a list of parts of type text; other types are not supported"
    if first["type"] == "unsupported":
        param = ".".join(map(str, [*path, first["ctx"]["name"]]))
        return invalid(text, param, "unsupported_parameter")
    if first["type"] == "extra_forbidden":
        name = str(last)[:64]
        param = ".".join(map(str, [*path, name]))
        reason = f"{param}: there is no such field{did_you_mean(name, sorted(known_fields()))}"
        return invalid(reason, param, "unknown_parameter")
    code = {"missing": "missing_required_parameter"}.get(first["type"], "invalid_value")
    return invalid(f"{param}: {text}" if param else text, param, code)
