"""Checks on every request before the application gets it, and headers of every response."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from culm.serve.http.error import ApiError, invalid, of_failure

OPEN = ("/", "/health", "/health/live", "/health/ready")  # need no key; all other paths do
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# For responses that are no page; the page has its own (`culm.serve.http.page`).
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
MAX_BYTES = 4 << 20
READ_BYTES = 64 << 20  # of a rejected body are read, so that the client sees the response
BODY_SECONDS = 30


class Guard:
    """Checks key, origin and size of each request.

    Every response has an `x-request-id` and a content security policy, errors of the application
    included.

    key: required in `Authorization: Bearer KEY`; None: no key is needed. local: the server listens
    on this machine only, so it refuses pages of other sites, and host names that resolve to it.
    """

    def __init__(self, app: ASGIApp, key: str | None, local: bool) -> None:
        self._app, self._key, self._local = app, key, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number, started = secrets.token_hex(8), False

        async def named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = number
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._serve(scope, receive, named)
        except Exception as error:
            failure = of_failure(scope["method"], scope["path"], error)
            if started:  # too late for another status: the connection breaks off
                raise
            await failure.response()(scope, receive, named)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
            receive = await _buffered(scope, receive)
        except asyncio.CancelledError:  # the server stops before the request has arrived
            return
        except ApiError as error:
            await error.response({"Connection": "close"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._local:
            _check_local(headers.get("host", ""), headers.get("origin"))
        if self._key is None or scope["path"] in OPEN:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1"), self._key.encode())
        if kind.lower() != "bearer" or not same:
            raise ApiError(401, "The API key is missing or wrong.", "invalid_api_key")


def _check_local(host: str, origin: str | None) -> None:
    try:
        name = urlsplit(f"//{host}").hostname
        page = urlsplit(origin).netloc if origin else host
    except ValueError as error:
        raise invalid(f"Host or Origin: {error}", code="invalid_header") from None
    if name not in LOOPBACK:
        raise ApiError(403, "This server accepts requests to localhost only.", "forbidden_host")
    if page != host:
        raise ApiError(403, "Pages of other sites may not use this server.", "forbidden_origin")


async def _buffered(scope: Scope, receive: Receive) -> Receive:
    """Read the body, within limits, and return a `receive` that replays it."""
    declared = Headers(scope=scope).get("content-length", "0")
    body, more, size = bytearray(), True, 0
    # Digits that are no ASCII and numbers of any length can stand here.
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > READ_BYTES):
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                part = message.get("body", b"")
                more, size = message.get("more_body", False), size + len(part)
                if size <= MAX_BYTES:
                    body += part
                elif size > READ_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise ApiError(408, "The body did not arrive in time.", "timeout") from None
    if size > MAX_BYTES:
        raise _too_large()
    kind = Headers(scope=scope).get("content-type", "none").partition(";")[0].strip().lower()
    if scope["method"] == "POST" and kind != "application/json":
        raise ApiError(
            415, f"Content-Type: {kind}, but it should be application/json.", "unsupported_media"
        )
    waiting: list[Message] = [
        {"type": "http.request", "body": bytes(body), "more_body": False},
        *([{"type": "http.disconnect"}] if more else []),
    ]

    async def again() -> Message:
        return waiting.pop(0) if waiting else await receive()

    return again


def _too_large() -> ApiError:
    return ApiError(413, f"The body is larger than {MAX_BYTES >> 20} MiB.", "request_too_large")
